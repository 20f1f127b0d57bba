from broker import Service

class MyService(Service):

    def handle(self):
        self.invoke_async('zato.ping', 'Hello from async!')

class MyServiceAsyncCallback(Service):

    def handle(self):
        self.logger.info('I received %r', self.request.payload)
