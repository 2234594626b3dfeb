// Asks http2_server.js for everything, one after the other, cancels what has no end, sends a ping, and says goodbye.
'use strict';
const http2 = require('node:http2');

const session = http2.connect(process.argv[2], { maxHeaderListPairs: 1000, settings: { enablePush: true } });
session.on('stream', (pushed) => pushed.resume());

function ask(path) {
  return new Promise((resolve) => {
    const request = session.request({ ':path': path, ':method': path === '/post' ? 'POST' : 'GET' });
    request.on('close', resolve);
    request.on('data', () => {
      if (path === '/endless') request.close(http2.constants.NGHTTP2_CANCEL);
    });
    request.end(path === '/post' ? 'z'.repeat(20000) : undefined);
  });
}

(async () => {
  for (const path of ['/trailers', '/push', '/endless', '/post', '/trailers']) await ask(path);
  await new Promise((resolve) => session.ping(resolve));
  session.goaway(http2.constants.NGHTTP2_NO_ERROR);
  session.close();
})();
