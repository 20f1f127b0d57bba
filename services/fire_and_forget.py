from broker import Service

class MyService(Service):

    def handle(self):
        cid = self.invoke_async('zato.helpers.input-logger', 'Hello from async!')
        self.logger.info('I received a CID %r', cid)
