// Node's own HTTP server as it comes, with one setting: `node server.mjs PORT KEEP_ALIVE_TIMEOUT`.
// It answers as `edge` does (wire.rs), and `/executed` tells of each row how many requests it has
// acted on more than once.

import { createServer } from "node:http";

const [port, keepAliveTimeout] = process.argv.slice(2).map(Number);
const times = new Map();
const twice = {};

function act(request, response) {
  if (request.url === "/executed") {
    response.end(JSON.stringify(twice));
    return;
  }
  const [, row, id] = request.url.split("/");
  times.set(id, (times.get(id) ?? 0) + 1);
  if (times.get(id) === 2) twice[row] = (twice[row] ?? 0) + 1;
  request.socket.carried = (request.socket.carried ?? 0) + 1;
  const body = `${id} ${request.socket.carried}`;
  response.setHeader("Content-Length", body.length);
  response.end(body);
}

const server = createServer((request, response) => {
  request.resume().on("end", () => act(request, response));
});
server.keepAliveTimeout = keepAliveTimeout;
server.listen(port, "0.0.0.0");
