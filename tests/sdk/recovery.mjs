import assert from "node:assert/strict";

import {
  api,
  connected,
  dataOf,
  newClient,
  publish,
  record,
  scenario,
  subscribed,
  token,
  unique,
} from "./kit.mjs";

/** A subscription that knows its position and is unsubscribed, and three publications that it missed. */
async function away(t) {
  const topic = unique("recovery");
  const subscription = await subscribed(await connected(t), topic);
  subscription.unsubscribe();
  for (const number of [1, 2, 3]) await publish(topic, number);
  return subscription;
}

/** Where a topic stands, as the HTTP API tells it. */
async function positionOf(channel) {
  const { offset, epoch } = await api("history", { channel, limit: 0 });
  return { offset, epoch };
}

scenario("gets what it missed while it was disconnected", async (t) => {
  const topic = unique("recovery");
  const client = await connected(t);
  const subscription = await subscribed(client, topic);
  const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];
  await publish(topic, "live");
  await publications.next();

  client.disconnect();
  for (const number of [2, 3, 4]) await publish(topic, number);
  client.connect();

  const context = await subscribedEvents.next();
  assert.deepEqual([context.wasRecovering, context.recovered, context.hasRecoveredPublications], [true, true, true]);
  const missed = await publications.take(3);
  assert.deepEqual([dataOf(missed), missed.map(({ offset }) => offset)], [[2, 3, 4], [2, 3, 4]]);
  await publish(topic, "live again");
  assert.deepEqual(dataOf(await publications.take(1)), ["live again"]);
});

scenario("gets what it missed while it was unsubscribed", async (t) => {
  const subscription = await away(t);
  const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];

  subscription.subscribe();

  assert.equal((await subscribedEvents.next()).recovered, true);
  assert.deepEqual(dataOf(await publications.take(3)), [1, 2, 3]);
});

scenario("what an unsubscribe in the subscribed event left out comes later", async (t) => {
  const subscription = await away(t);
  const [publications, unsubscribed] = [record(subscription, "publication"), record(subscription, "unsubscribed")];
  subscription.once("subscribed", () => subscription.unsubscribe());

  subscription.subscribe();
  await unsubscribed.next();
  assert.deepEqual(publications.unread, []);
  subscription.subscribe();

  assert.deepEqual(dataOf(await publications.take(3)), [1, 2, 3]);
});

scenario("what an unsubscribe in a publication event left out comes later", async (t) => {
  const subscription = await away(t);
  const [publications, unsubscribed] = [record(subscription, "publication"), record(subscription, "unsubscribed")];
  subscription.once("publication", () => subscription.unsubscribe());

  subscription.subscribe();
  await unsubscribed.next();
  assert.deepEqual(dataOf(publications.unread), [1]);
  subscription.subscribe();

  assert.deepEqual(dataOf(await publications.take(3)), [1, 2, 3]);
});

scenario("is told when the log no longer reaches back to its position", async (t) => {
  const topic = unique("smallhistory");
  const subscription = await subscribed(await connected(t), topic);
  const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];
  await publish(topic, 1);
  await publications.next();

  subscription.unsubscribe();
  for (const number of [2, 3, 4, 5]) await publish(topic, number);
  subscription.subscribe();
  const context = await subscribedEvents.next();
  await publish(topic, 6);

  assert.deepEqual([context.wasRecovering, context.recovered, context.streamPosition.offset], [true, false, 5]);
  assert.deepEqual(dataOf(await publications.take(1)), [6]);
});

scenario("begins at a position that it is given", async (t) => {
  const topic = unique("recovery");
  for (const number of [1, 2, 3]) await publish(topic, number);
  const { epoch } = await positionOf(topic);
  const client = await connected(t);

  for (const [since, expected] of [
    [{ offset: 1, epoch }, [2, 3]],
    [{ offset: 0, epoch: "" }, [1, 2, 3]],
    [{}, [1, 2, 3]],
  ]) {
    const subscription = client.newSubscription(topic, { since });
    const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];
    subscription.subscribe();
    assert.equal((await subscribedEvents.next()).recovered, true);
    assert.deepEqual(dataOf(await publications.take(expected.length)), expected);
    subscription.unsubscribe();
    client.removeSubscription(subscription);
  }
});

scenario("asks for its state once, and not again when it could recover", async (t) => {
  const topic = unique("recovery");
  await publish(topic, "before");
  const { epoch } = await positionOf(topic);
  const client = await connected(t);
  let asked = 0;
  const subscription = client.newSubscription(topic, { getState: async () => (asked++, { offset: 0, epoch }) });
  const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];

  subscription.subscribe();
  await subscribedEvents.next();
  await publications.next();
  client.disconnect();
  await publish(topic, "missed");
  client.connect();
  await subscribedEvents.next();

  assert.deepEqual(dataOf(await publications.take(1)), ["missed"]);
  assert.equal(asked, 1);
});

scenario("asks for its state anew when its position cannot be recovered", async (t) => {
  const topic = unique("smallhistory");
  await publish(topic, 0);
  const client = await connected(t);
  const states = [];
  const subscription = client.newSubscription(topic, {
    minResubscribeDelay: 50,
    maxResubscribeDelay: 100,
    getState: async () => {
      states.push(await positionOf(topic));
      return states.at(-1);
    },
  });
  const subscribedEvents = record(subscription, "subscribed");

  subscription.subscribe();
  await subscribedEvents.next();
  client.disconnect();
  for (let number = 1; number <= 5; number++) await publish(topic, number);
  client.connect();
  const context = await subscribedEvents.next();

  assert.deepEqual(states.map(({ offset }) => offset), [1, 6]);
  assert.deepEqual([context.recovered, context.streamPosition.offset], [true, 6]);
});

scenario("tries again when its state could not be loaded", async (t) => {
  const client = await connected(t);
  let asked = 0;
  const subscription = client.newSubscription(unique("recovery"), {
    minResubscribeDelay: 20,
    maxResubscribeDelay: 50,
    getState: async () => {
      if (++asked < 3) throw new Error("the database is down");
      return { offset: 0, epoch: "" };
    },
  });
  const [errors, subscribedEvents] = [record(subscription, "error"), record(subscription, "subscribed")];

  subscription.subscribe();
  await subscribedEvents.next();

  assert.equal(asked, 3);
  assert.deepEqual((await errors.take(2)).map(({ error }) => error.code), [13, 13]);
});

scenario("begins anew when the server says that its state is invalid", async (t) => {
  const [user, topic] = [unique(), unique("recovery")];
  let asked = 0;
  const client = await connected(t, { getToken: async () => (asked++, token({ sub: user })) });
  const subscription = await subscribed(client, topic);
  const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];
  await publish(topic, "seen");
  await publications.next();

  await api("disconnect", { user, disconnect: { code: 3_014, reason: "state invalidated" } });
  const context = await subscribedEvents.next();
  await publish(topic, "live again");

  assert.deepEqual([asked, context.wasRecovering, context.recovered], [2, true, false]);
  assert.deepEqual(dataOf(await publications.take(1)), ["live again"]);
});

scenario("a cache gives the newest publication alone, once", async (t) => {
  const topic = unique("cache");
  for (const number of [1, 2, 3]) await publish(topic, number);
  const subscription = (await connected(t)).newSubscription(topic, { since: {} });
  const [publications, subscribedEvents] = [record(subscription, "publication"), record(subscription, "subscribed")];

  subscription.subscribe();
  assert.equal((await subscribedEvents.next()).recovered, true);
  assert.deepEqual(dataOf(await publications.take(1)), [3]);
  subscription.unsubscribe();
  subscription.subscribe();
  assert.equal((await subscribedEvents.next()).hasRecoveredPublications, false);
  subscription.unsubscribe();
  for (const number of [4, 5]) await publish(topic, number);
  subscription.subscribe();
  await subscribedEvents.next();

  assert.deepEqual(dataOf(await publications.take(1)), [5]);
  assert.deepEqual(publications.unread, []);
});

scenario("a storm of reconnects loses nothing and repeats nothing", async (t) => {
  const topic = unique("recovery");
  const user = unique();
  const total = 60;
  const clients = Array.from({ length: 20 }, () => newClient(t, { token: token({ sub: user }) }));
  const records = clients.map((client) => {
    const subscription = client.newSubscription(topic);
    subscription.subscribe();
    client.connect();
    return record(subscription, "publication");
  });
  await Promise.all(clients.map((client) => client.subscriptions()[topic].ready()));

  for (let number = 1; number <= total; number++) {
    await publish(topic, number);
    if (number % 20 === 0) await api("disconnect", { user, disconnect: { code: 3_011, reason: "reconnect" } });
  }

  const expected = Array.from({ length: total }, (_, index) => index + 1);
  for (const found of records) assert.deepEqual(dataOf(await found.take(total)), expected);
  await Promise.all(clients.map((client) => client.subscriptions()[topic].ready()));
  assert.deepEqual(records.flatMap(({ unread }) => unread), []);
});
