import assert from "node:assert/strict";

import { connected, newClient, pack, record, rejection, scenario, State, token, unpack } from "./kit.mjs";

scenario("calls a function, and gets what it returns", async (t) => {
  const client = await connected(t, { token: token({ sub: "ana" }) });

  const { data } = await client.rpc("shop.price", pack({ product: 7 }));

  assert.deepEqual(unpack(data), { price: 700, user: "ana" });
});

scenario("many calls are answered, each with its own result", async (t) => {
  const client = await connected(t);
  const products = Array.from({ length: 20 }, (_, index) => index);

  const results = await Promise.all(products.map((product) => client.rpc("shop.price", pack({ product }))));

  assert.deepEqual(
    results.map(({ data }) => unpack(data).price),
    products.map((product) => product * 100),
  );
});

scenario("a call that cannot be answered is an error with its code", async (t) => {
  const [visitor, ana] = [await connected(t), await connected(t, { token: token({ sub: "ana" }) })];

  const errors = await Promise.all([
    rejection(visitor.rpc("no.such.function", pack({}))),
    rejection(visitor.rpc("shop.order", pack({ product: 1 }))),
    rejection(visitor.rpc("shop.price", pack({ product: "seven" }))),
    rejection(ana.rpc("shop.order", pack({ product: 1 }))),
  ]);

  assert.deepEqual(
    errors.map(({ code, message }) => [code, message]),
    [
      [104, "method not found"],
      [103, "permission denied"],
      [107, "bad request"],
      [1_001, "out of stock"],
    ],
  );
  assert.equal(visitor.state, State.Connected);
});

scenario("what it sends is taken, and answered with a message", async (t) => {
  const client = newClient(t);
  const messages = record(client, "message");

  const sent = client.send(pack({ hello: 1 }));
  client.connect();
  await sent;

  assert.deepEqual(unpack((await messages.next()).data), { "answer to": { hello: 1 } });
});
