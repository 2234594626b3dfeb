// Node's HTTP/2 server, in the clear: a page with trailers, a pushed file, a response without an end, long fields.
'use strict';
const http2 = require('node:http2');

const server = http2.createServer({ settings: { headerTableSize: 8192 } });
server.on('stream', (stream, headers) => {
  const path = headers[':path'];
  if (path === '/trailers') {
    stream.respond({ ':status': 200, 'content-type': 'text/plain' }, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-checksum': '1234' }));
    stream.end('a page');
  } else if (path === '/push') {
    stream.pushStream({ ':path': '/style.css' }, (error, pushed) => {
      if (error) throw error;
      pushed.respond({ ':status': 200 });
      pushed.end('p {}');
      stream.respond({ ':status': 200 });
      stream.end('with style');
    });
  } else if (path === '/endless') {
    stream.respond({ ':status': 200 });
    stream.write('a part');
  } else {
    stream.resume();
    stream.on('end', () => {
      stream.respond({ ':status': 404, 'x-long': 'x'.repeat(20000) });
      stream.end(Buffer.alloc(40000, 'y'));
    });
  }
});
server.listen(Number(process.argv[3]), process.argv[2]);
