import assert from "node:assert/strict";

import {
  api,
  connected,
  dataOf,
  eventually,
  newClient,
  pack,
  publish,
  record,
  rejection,
  scenario,
  State,
  subscribed,
  SubscriptionState,
  token,
  unique,
  unpack,
} from "./kit.mjs";

scenario("subscribes and unsubscribes", async (t) => {
  const client = await connected(t);
  const topic = unique();
  const subscription = client.newSubscription(topic);
  const [subscribedEvents, unsubscribed] = [record(subscription, "subscribed"), record(subscription, "unsubscribed")];

  subscription.subscribe();
  await subscription.ready();
  assert.equal(subscription.state, SubscriptionState.Subscribed);
  subscription.unsubscribe();

  const context = await subscribedEvents.next();
  assert.equal(context.channel, topic);
  assert.deepEqual([context.recoverable, context.positioned, context.wasRecovering], [true, true, false]);
  assert.equal(context.streamPosition.offset, 0);
  assert.deepEqual(await unsubscribed.next(), { channel: topic, code: 0, reason: "unsubscribe called" });
  assert.equal(client.state, State.Connected);
});

scenario("gets what it publishes, and who did", async (t) => {
  const client = newClient(t, { token: token({ sub: "ana", info: { name: "Ana" } }) });
  const connectedEvents = record(client, "connected");
  client.connect();
  const subscription = await subscribed(client, unique());
  const publications = record(subscription, "publication");

  await subscription.publish(pack({ text: "schön 🐘" }));

  const [{ data, info, offset }] = await publications.take(1);
  assert.deepEqual([unpack(data), offset], [{ text: "schön 🐘" }, 1]);
  assert.deepEqual([info.user, info.client], ["ana", (await connectedEvents.next()).client]);
  assert.deepEqual(unpack(info.connInfo), { name: "Ana" });
});

scenario("two clients get the same in the same order", async (t) => {
  const topic = unique("test");
  const both = await Promise.all([connected(t), connected(t)]);
  const records = [];
  for (const client of both) records.push(record(await subscribed(client, topic), "publication"));

  await Promise.all(Array.from({ length: 50 }, (_, number) => both[number % 2].publish(topic, pack({ number }))));

  const [first, second] = await Promise.all(records.map((found) => found.take(50)));
  assert.deepEqual(
    first.map(({ offset }) => offset),
    Array.from({ length: 50 }, (_, index) => index + 1),
  );
  assert.deepEqual(dataOf(first), dataOf(second));
});

scenario("is present once after a loop of subscribing and unsubscribing", async (t) => {
  const client = await connected(t);
  const topic = unique();
  const subscription = client.newSubscription(topic);

  for (let index = 0; index < 10; index++) {
    subscription.subscribe();
    subscription.unsubscribe();
  }
  assert.equal(subscription.state, SubscriptionState.Unsubscribed);
  subscription.subscribe();
  const stats = await subscription.presenceStats();
  const presence = await subscription.presence();
  subscription.unsubscribe();

  assert.deepEqual(stats, { numClients: 1, numUsers: 1 });
  assert.equal(Object.keys(presence.clients).length, 1);
  await eventually(async () => (await client.presenceStats(topic)).numClients === 0);
  assert.deepEqual((await client.presence(topic)).clients, {});
});

scenario("unsubscribes right after it was told to connect again", async (t) => {
  const client = await connected(t);
  const subscription = client.newSubscription(unique());
  const unsubscribed = record(subscription, "unsubscribed");

  subscription.subscribe();
  client.disconnect();
  client.connect();
  subscription.unsubscribe();
  await unsubscribed.next();
  assert.equal(subscription.state, SubscriptionState.Unsubscribed);
  subscription.subscribe();
  await subscription.ready();

  assert.equal(subscription.state, SubscriptionState.Subscribed);
});

scenario("unsubscribes between the connect command and its answer", async (t) => {
  const client = newClient(t);
  const subscription = client.newSubscription(unique());
  const unsubscribed = record(subscription, "unsubscribed");
  client.once("__centrifuge_debug:connect_frame_sent", () => subscription.unsubscribe());

  subscription.subscribe();
  client.connect();
  await client.ready();
  if (subscription.state !== SubscriptionState.Unsubscribed) subscription.unsubscribe();
  await unsubscribed.next();
  subscription.subscribe();
  await subscription.ready();

  assert.equal(subscription.state, SubscriptionState.Subscribed);
});

scenario("gets nothing after it unsubscribed, and goes on where it was", async (t) => {
  const topic = unique("recovery");
  const client = await connected(t);
  const subscription = await subscribed(client, topic);
  const publications = record(subscription, "publication");
  await publish(topic, 1);
  await publications.next();

  for (let round = 0; round < 5; round++) {
    subscription.unsubscribe();
    await publish(topic, `away ${round}`);
    subscription.subscribe();
    await subscription.ready();
    await publish(topic, `here ${round}`);
    assert.deepEqual(dataOf(await publications.take(2)), [`away ${round}`, `here ${round}`]);
  }
});

scenario("subscribes again from its own unsubscribed event", async (t) => {
  const client = await connected(t);
  const subscription = await subscribed(client, unique());
  const subscribedEvents = record(subscription, "subscribed");
  subscription.once("unsubscribed", () => subscription.subscribe());

  subscription.unsubscribe();

  await subscribedEvents.next();
});

scenario("is told when the server unsubscribes it", async (t) => {
  const user = unique();
  const client = await connected(t, { token: token({ sub: user }) });
  const topic = unique();
  const subscription = await subscribed(client, topic);
  const unsubscribed = record(subscription, "unsubscribed");

  await api("unsubscribe", { user, channel: topic });

  assert.deepEqual(await unsubscribed.next(), { channel: topic, code: 2_000, reason: "server unsubscribe" });
  assert.equal(subscription.state, SubscriptionState.Unsubscribed);
});

scenario("many subscriptions come and go together", async (t) => {
  const client = newClient(t);
  const subscriptions = Array.from({ length: 100 }, () => client.newSubscription(unique()));

  for (const subscription of subscriptions) subscription.subscribe();
  client.connect();
  await Promise.all(subscriptions.map((subscription) => subscription.ready()));
  const ended = subscriptions.map((subscription) => record(subscription, "unsubscribed").next());
  for (const subscription of subscriptions) subscription.unsubscribe();
  const codes = (await Promise.all(ended)).map(({ code }) => code);

  assert.deepEqual(new Set(codes), new Set([0]));
  assert.equal(client.state, State.Connected);
});

scenario("what cannot be subscribed to ends with the code that says why", async (t) => {
  const client = await connected(t);
  const refused = { "nowhere:1": 102, "chat:lobby": 103, "$private:1": 103, "limited:a#1": 103, ["x".repeat(300)]: 107 };

  for (const [topic, code] of Object.entries(refused)) {
    const subscription = client.newSubscription(topic);
    const unsubscribed = record(subscription, "unsubscribed");
    subscription.subscribe();
    assert.equal((await unsubscribed.next()).code, code, topic);
  }

  assert.equal(client.state, State.Connected);
});

scenario("what cannot be done is an error with its code", async (t) => {
  const client = await connected(t);
  const topic = unique("fleeting");
  await subscribed(client, topic);

  assert.equal((await rejection(client.publish(unique("test"), pack({})))).code, 103);
  assert.equal((await rejection(client.publish("nowhere:1", pack({})))).code, 102);
  assert.equal((await rejection(client.history(unique("test"), { limit: 1 }))).code, 103);
  assert.equal((await rejection(client.history(topic, { limit: 1 }))).code, 108);
  assert.equal((await rejection(client.presence(topic))).code, 108);
  assert.equal((await rejection(client.presenceStats(unique("presence")))).code, 103);
  assert.equal(client.state, State.Connected);
});

scenario("a topic that lists users is for them alone", async (t) => {
  const [ana, bob] = [unique(), unique()];
  const topic = `limited:room#${ana},${unique()}`;
  const [admitted, refused] = await Promise.all(
    [ana, bob].map((sub) => connected(t, { token: token({ sub }) })),
  );
  const subscription = refused.newSubscription(topic);
  const unsubscribed = record(subscription, "unsubscribed");

  await subscribed(admitted, topic);
  subscription.subscribe();

  assert.equal((await unsubscribed.next()).code, 103);
});
