from broker import Service

class MyService(Service):

    def handle(self):
        cid = self.invoke_async('zato.ping', 'Hello from async!', callback='my.callback')
        self.logger.info('I received a CID %r', cid)

class MyCallback(Service):
    name = 'my.callback'

    def handle(self):
        self.logger.info('I received %r', self.request.payload)
