import assert from "node:assert/strict";

import {
  api,
  connected,
  dataOf,
  newClient,
  publish,
  record,
  scenario,
  token,
  unique,
  unpack,
} from "./kit.mjs";

scenario("a token subscribes its bearer", async (t) => {
  const [plain, special] = [unique("test"), unique("presence")];
  const claims = { sub: unique(), channels: [plain], subs: { [special]: { info: { seat: 1 }, data: { hello: "you" } } } };
  const client = newClient(t, { token: token(claims) });
  const [subscribedEvents, publications] = [record(client, "subscribed"), record(client, "publication")];

  client.connect();
  const contexts = await subscribedEvents.take(3);
  await publish(plain, { a: 1 });

  const byTopic = Object.fromEntries(contexts.map((context) => [context.channel, context]));
  assert.deepEqual(new Set(Object.keys(byTopic)), new Set([plain, special, `#${claims.sub}`]));
  assert.deepEqual([byTopic[plain].recoverable, byTopic[special].recoverable], [true, false]);
  assert.deepEqual(unpack(byTopic[special].data), { hello: "you" });
  const [{ channel, data }] = await publications.take(1);
  assert.deepEqual([channel, unpack(data)], [plain, { a: 1 }]);
  const [info] = Object.values((await client.presence(special)).clients);
  assert.deepEqual(unpack(info.chanInfo), { seat: 1 });
});

scenario("a personal topic reaches every client of its user, and recovers", async (t) => {
  const user = unique();
  const [first, second] = await Promise.all([1, 2].map(() => connected(t, { token: token({ sub: user }) })));
  const records = [first, second].map((client) => record(client, "publication"));
  const subscribedEvents = record(first, "subscribed");
  await publish(`#${user}`, "for you");
  for (const found of records) assert.deepEqual(dataOf(await found.take(1)), ["for you"]);

  first.disconnect();
  for (const number of [1, 2]) await publish(`#${user}`, number);
  first.connect();
  const context = await subscribedEvents.next();
  await publish(`#${user}`, 3);

  assert.deepEqual([context.channel, context.wasRecovering, context.recovered], [`#${user}`, true, true]);
  for (const found of records) assert.deepEqual(dataOf(await found.take(3)), [1, 2, 3]);
});

scenario("who is subscribed by the server is told of joins, its own first", async (t) => {
  const topic = unique();
  const client = newClient(t, { token: token({ sub: "ana", channels: [topic] }) });
  const [joins, leaves, connectedEvents] = [record(client, "join"), record(client, "leave"), record(client, "connected")];
  const next = async (events) => {
    for (;;) {
      const context = await events.next();
      if (context.channel === topic) return context; // and not the personal topic
    }
  };

  client.connect();
  const { client: id } = await connectedEvents.next();
  const own = await next(joins);
  const other = await connected(t, { token: token({ sub: "bob", channels: [topic] }) });
  const joined = await next(joins);
  other.disconnect();
  const left = await next(leaves);

  assert.deepEqual([own.channel, own.info.client, own.info.user], [topic, id, "ana"]);
  assert.deepEqual([joined.channel, joined.info.user, left.info.user], [topic, "bob", "bob"]);
});

scenario("the HTTP API subscribes and unsubscribes", async (t) => {
  const [user, topic] = [unique(), unique("recovery")];
  const client = await connected(t, { token: token({ sub: user }) });
  const [subscribedEvents, unsubscribed] = [record(client, "subscribed"), record(client, "unsubscribed")];
  const publications = record(client, "publication");
  await publish(topic, "before");

  await api("subscribe", { user, channel: topic, data: { because: "you may" } });
  const context = await subscribedEvents.next();
  await publish(topic, "while");
  assert.deepEqual(dataOf(await publications.take(1)), ["while"]);
  await api("unsubscribe", { user, channel: topic });
  const ended = await unsubscribed.next();
  await publish(topic, "after");
  await publish(`#${user}`, "end");

  assert.deepEqual([context.channel, context.recoverable, context.streamPosition.offset], [topic, true, 1]);
  assert.deepEqual(unpack(context.data), { because: "you may" });
  assert.equal(ended.channel, topic);
  assert.deepEqual(dataOf(await publications.take(1)), ["end"]);
});

scenario("a subscription of the HTTP API begins where it says", async (t) => {
  const [user, topic] = [unique(), unique("recovery")];
  for (const number of [1, 2, 3]) await publish(topic, number);
  const { epoch } = await api("history", { channel: topic, limit: 0 });
  const client = await connected(t, { token: token({ sub: user }) });
  const publications = record(client, "publication");

  await api("subscribe", { user, channel: topic, recover_since: { offset: 1, epoch } });

  assert.deepEqual(dataOf(await publications.take(2)), [2, 3]);
});

scenario("a topic that a token no longer names ends with the next connection", async (t) => {
  const [kept, dropped] = [unique("test"), unique("test")];
  const user = unique();
  const client = await connected(t, { token: token({ sub: user, channels: [kept, dropped] }) });
  const unsubscribed = record(client, "unsubscribed");

  client.disconnect();
  client.setToken(token({ sub: user, channels: [kept] }));
  client.connect();

  assert.equal((await unsubscribed.next()).channel, dropped);
});

scenario("a connection ends when the HTTP API says that it expires, and begins with a new token", async (t) => {
  const user = unique();
  const client = await connected(t, { getToken: async () => token({ sub: user }) });
  const [connecting, connectedEvents] = [record(client, "connecting"), record(client, "connected")];

  await api("refresh", { user, expire_at: Math.floor(Date.now() / 1_000) + 1 });
  const later = await connecting.next();
  await connectedEvents.next();
  await api("refresh", { user, expired: true });
  const atOnce = await connecting.next();
  await connectedEvents.next();

  assert.deepEqual([later, atOnce], Array(2).fill({ code: 3_005, reason: "connection expired" }));
});
