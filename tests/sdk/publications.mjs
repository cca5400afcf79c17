import assert from "node:assert/strict";

import {
  api,
  connected,
  dataOf,
  pack,
  publish,
  record,
  scenario,
  subscribed,
  unique,
} from "./kit.mjs";

/** A subscription in a namespace, and its publications. */
async function listening(t, namespace, options) {
  const topic = unique(namespace);
  const client = await connected(t);
  const subscription = await subscribed(client, topic, options);
  return { topic, client, subscription, publications: record(subscription, "publication") };
}

const TEXT = "a".repeat(500);

scenario("whatever JSON can say arrives as it was published", async (t) => {
  const { topic, publications } = await listening(t, "test");
  const values = [null, true, 0, -1.5, "", "ß\u2028\n\"\\ 𝄞 \u0000 日本語".repeat(50), [], {}, [{ a: [null] }], { "": { "é": 1 } }];

  for (const value of values) await publish(topic, value);

  assert.deepEqual(dataOf(await publications.take(values.length)), values);
});

scenario("large payloads arrive whole", async (t) => {
  const { client, topic, publications } = await listening(t, "test");
  const texts = [1, 1_000, 16_000, 60_000].map((size) => "é".repeat(size / 2) + size);

  for (const text of texts) await client.publish(topic, pack({ text }));

  assert.deepEqual(dataOf(await publications.take(texts.length)).map(({ text }) => text), texts);
});

scenario("tags travel with what the HTTP API publishes", async (t) => {
  const { topic, publications } = await listening(t, "test");

  await publish(topic, 1, { tags: { ticker: "AAPL", price: "100" } });
  await publish(topic, 2);

  const [tagged, plain] = await publications.take(2);
  assert.deepEqual([tagged.tags, tagged.info], [{ ticker: "AAPL", price: "100" }, undefined]);
  assert.deepEqual(plain.tags ?? {}, {});
});

scenario("commands are sent in one batch and each is answered", async (t) => {
  const { client, topic, publications } = await listening(t, "test");

  client.startBatching();
  const answers = [1, 2, 3, 4, 5].map((number) => client.publish(topic, pack({ number })));
  client.stopBatching();

  assert.deepEqual(await Promise.all(answers), [{}, {}, {}, {}, {}]);
  assert.deepEqual(dataOf(await publications.take(5)).map(({ number }) => number), [1, 2, 3, 4, 5]);
});

scenario("a batch and a broadcast of the HTTP API arrive in order", async (t) => {
  const { topic, publications } = await listening(t, "test");

  const commands = [1, 2, 3].map((data) => ({ publish: { channel: topic, data } }));
  const { replies } = await api("batch", { commands });
  await api("broadcast", { channels: [topic, unique("test")], data: 4 });

  assert.deepEqual(replies.map((reply) => reply.publish.offset), [1, 2, 3]);
  assert.deepEqual(dataOf(await publications.take(4)), [1, 2, 3, 4]);
});

scenario("what was published before with the same key is not published again", async (t) => {
  const { topic, publications } = await listening(t, "test");

  await Promise.all(Array.from({ length: 5 }, () => publish(topic, "once", { idempotency_key: topic })));
  await publish(topic, "end");

  assert.deepEqual(dataOf(await publications.take(2)), ["once", "end"]);
});

scenario("deltas are decoded, and smaller than what they stand for", async (t) => {
  const { topic, subscription, publications } = await listening(t, "delta", { delta: "fossil" });
  const values = [
    ...Array.from({ length: 9 }, (_, index) => ({ index, text: TEXT })),
    { text: `${TEXT.slice(1)}ß`, more: "日本語" },
  ];

  for (const value of values) await publish(topic, value);

  assert.deepEqual(dataOf(await publications.take(values.length)), values);
  const stats = subscription.deltaStats();
  assert.deepEqual([stats.numPublications, stats.numFullPayloads, stats.numDeltaPayloads], [10, 1, 9]);
  assert.ok(stats.bytesReceived < stats.bytesDecoded / 3, JSON.stringify(stats));
});

scenario("a payload that has little of the one before comes whole", async (t) => {
  const { topic, subscription, publications } = await listening(t, "delta", { delta: "fossil" });

  for (const value of [{ text: TEXT }, "hi", { text: TEXT }]) await publish(topic, value);

  assert.deepEqual(dataOf(await publications.take(3)), [{ text: TEXT }, "hi", { text: TEXT }]);
  assert.equal(subscription.deltaStats().numDeltaPayloads, 0);
});

scenario("deltas begin anew with what was missed while disconnected or unsubscribed", async (t) => {
  const { topic, client, subscription, publications } = await listening(t, "delta", { delta: "fossil" });
  const subscribedEvents = record(subscription, "subscribed");
  await publish(topic, { step: 1, TEXT });
  await publications.next();

  client.disconnect();
  for (const step of [2, 3]) await publish(topic, { step, TEXT });
  client.connect();
  assert.equal((await subscribedEvents.next()).recovered, true);
  await publish(topic, { step: 4, TEXT });
  assert.deepEqual(dataOf(await publications.take(3)), [2, 3, 4].map((step) => ({ step, TEXT })));
  subscription.unsubscribe();
  for (const step of [5, 6]) await publish(topic, { step, TEXT });
  subscription.subscribe();
  assert.equal((await subscribedEvents.next()).recovered, true);
  await publish(topic, { step: 7, TEXT });

  assert.deepEqual(dataOf(await publications.take(3)), [5, 6, 7].map((step) => ({ step, TEXT })));
});

scenario("where deltas are not allowed everything comes whole", async (t) => {
  const { topic, subscription, publications } = await listening(t, "test", { delta: "fossil" });

  for (const step of [1, 2]) await publish(topic, { step, TEXT });

  assert.deepEqual(dataOf(await publications.take(2)), [1, 2].map((step) => ({ step, TEXT })));
  assert.equal(subscription.deltaStats().numDeltaPayloads, 0);
});

scenario("a filter lets through what has the right tags", async (t) => {
  const cheap = { key: "price", cmp: "lt", val: "100" };
  const filters = [
    [{ key: "ticker", cmp: "eq", val: "AAPL" }, [1, 2]],
    [{ key: "ticker", cmp: "in", vals: ["AAPL", "GOOG"] }, [1, 2, 3]],
    [{ op: "and", nodes: [{ key: "ticker", cmp: "sw", val: "AA" }, cheap] }, [1]],
    [{ op: "or", nodes: [{ key: "ticker", cmp: "nex" }, cheap] }, [1, 4]],
    [{ op: "not", nodes: [{ key: "ticker", cmp: "ex" }] }, [4]],
  ];
  const topic = unique("filter");
  const found = [];
  for (const [tagsFilter] of filters) {
    found.push(record(await subscribed(await connected(t), topic, { tagsFilter }), "publication"));
  }
  const everything = record(await subscribed(await connected(t), topic), "publication");

  await publish(topic, 1, { tags: { ticker: "AAPL", price: "99.5" } });
  await publish(topic, 2, { tags: { ticker: "AAPL", price: "100" } });
  await publish(topic, 3, { tags: { ticker: "GOOG", price: "1000" } });
  await publish(topic, 4);
  await publish(topic, "end", { tags: { ticker: "AAPL", price: "1" } });
  await publish(topic, "end");

  assert.deepEqual(dataOf(await everything.take(6)), [1, 2, 3, 4, "end", "end"]);
  for (const [index, [tagsFilter, expected]] of filters.entries()) {
    const passed = dataOf(await found[index].take(expected.length + 1));
    assert.deepEqual(passed, [...expected, "end"], JSON.stringify(tagsFilter));
  }
});

scenario("a filter holds for what is recovered, too", async (t) => {
  const tagsFilter = { key: "kind", cmp: "eq", val: "even" };
  const { topic, client, subscription, publications } = await listening(t, "filter", { tagsFilter });
  const subscribedEvents = record(subscription, "subscribed");
  await publish(topic, 0, { tags: { kind: "even" } });
  await publications.next();

  client.disconnect();
  for (const number of [1, 2, 3, 4]) await publish(topic, number, { tags: { kind: number % 2 ? "odd" : "even" } });
  client.connect();
  assert.equal((await subscribedEvents.next()).recovered, true);
  await publish(topic, 6, { tags: { kind: "even" } });

  assert.deepEqual(dataOf(await publications.take(3)), [2, 4, 6]);
});

scenario("a filter that makes no sense, or is not allowed, is refused", async (t) => {
  const client = await connected(t);
  for (const [namespace, tagsFilter, code] of [
    ["filter", { key: "k", cmp: "about", val: "v" }, 107],
    ["test", { key: "k", cmp: "eq", val: "v" }, 108],
  ]) {
    const subscription = client.newSubscription(unique(namespace), { tagsFilter });
    const unsubscribed = record(subscription, "unsubscribed");
    subscription.subscribe();
    assert.equal((await unsubscribed.next()).code, code);
  }
});
