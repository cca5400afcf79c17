import assert from "node:assert/strict";

import {
  connected,
  dataOf,
  eventually,
  newClient,
  pause,
  publish,
  record,
  scenario,
  State,
  subscribed,
  SubscriptionState,
  token,
  UnauthorizedError,
  unique,
  unpack,
} from "./kit.mjs";

/** Gives tokens, one after the other and the last one again and again, and counts how often it was asked. */
function giving(...tokens) {
  const give = async (context) => {
    give.contexts.push(context);
    const next = tokens.length > 1 ? tokens.shift() : tokens[0];
    return typeof next === "function" ? next() : next;
  };
  give.contexts = [];
  return give;
}

scenario("a token is asked for once per connection and subscription", async (t) => {
  const topic = unique("test");
  const [getToken, getSubscriptionToken] = [
    giving(token({ sub: "ana" })),
    giving(token({ sub: "ana", channel: topic })),
  ];
  const client = newClient(t, { getToken });
  const subscription = client.newSubscription(topic, { getToken: getSubscriptionToken });

  client.connect();
  subscription.subscribe();
  await subscription.ready();
  client.disconnect();
  client.connect();
  await subscription.ready();

  assert.equal(getToken.contexts.length, 1);
  assert.deepEqual(getSubscriptionToken.contexts, [{ channel: topic }]);
});

scenario("many subscriptions have tokens that come in any order", async (t) => {
  const client = newClient(t, { token: token({ sub: "ana" }) });
  const subscriptions = Array.from({ length: 10 }, () => {
    const topic = `$${unique("private")}`;
    return client.newSubscription(topic, {
      getToken: async ({ channel }) => {
        await pause(Math.random() * 100);
        return token({ sub: "ana", channel });
      },
    });
  });

  client.connect();
  for (const subscription of subscriptions) subscription.subscribe();
  await Promise.all(subscriptions.map((subscription) => subscription.ready()));

  assert.deepEqual(new Set(subscriptions.map(({ state }) => state)), new Set([SubscriptionState.Subscribed]));
});

scenario("a wrong token ends the connection", async (t) => {
  for (const wrong of ["no token", token({ sub: "ana" }, "another secret"), token({ sub: "ana", channel: "test:1" })]) {
    const client = newClient(t, { token: wrong });
    const disconnected = record(client, "disconnected");

    client.connect();

    assert.deepEqual(await disconnected.next(), { code: 3_500, reason: "invalid token" });
    assert.equal(client.state, State.Disconnected);
  }
});

scenario("an expired token is replaced by a new one", async (t) => {
  const getToken = giving(token({ sub: "ana", seconds: -5 }), token({ sub: "ana" }));
  const client = newClient(t, { getToken });
  const errors = record(client, "error");

  client.connect();
  await client.ready();

  assert.equal(getToken.contexts.length, 2);
  assert.equal((await errors.next()).error.code, 109);
});

scenario("an expired token that cannot be replaced ends the connection", async (t) => {
  const client = newClient(t, { token: token({ sub: "ana", seconds: -5 }) });
  const disconnected = record(client, "disconnected");

  client.connect();

  assert.deepEqual(await disconnected.next(), { code: 1, reason: "unauthorized" });
});

scenario("who gives no token gives up", async (t) => {
  const getToken = giving(() => {
    throw new UnauthorizedError("");
  });
  const client = newClient(t, { getToken });
  const disconnected = record(client, "disconnected");

  client.connect();

  assert.deepEqual(await disconnected.next(), { code: 1, reason: "unauthorized" });
});

scenario("a connection is refreshed before it ends", async (t) => {
  const topic = unique("test");
  const getToken = giving(
    token({ sub: "ana", seconds: 3 }),
    () => token({ sub: "ana", seconds: 2 }),
    () => token({ sub: "ana" }),
  );
  const client = newClient(t, { getToken });
  const connecting = record(client, "connecting");
  client.connect();
  const publications = record(await subscribed(client, topic), "publication");

  await eventually(() => getToken.contexts.length === 3);
  await pause(5_000); // what expired last would not have been borne with for so long
  await publish(topic, "still here");

  assert.deepEqual(dataOf(await publications.take(1)), ["still here"]);
  assert.deepEqual((await connecting.take(1)).map(({ code }) => code), [0]);
  assert.deepEqual(connecting.unread, []);
  assert.equal(getToken.contexts.length, 3);
});

scenario("a connection that is not refreshed ends, and begins with a new token", async (t) => {
  let hanging = false;
  const getToken = giving(
    token({ sub: "ana", seconds: 3 }),
    () => new Promise(() => (hanging = true)),
    token({ sub: "ana" }),
  );
  const client = newClient(t, { getToken });
  const [connecting, connectedEvents] = [record(client, "connecting"), record(client, "connected")];

  client.connect();
  await connectedEvents.next();
  const [, lost] = await connecting.take(2);
  await connectedEvents.next();

  assert.deepEqual(lost, { code: 3_005, reason: "connection expired" });
  assert.ok(hanging);
});

scenario("a refresh with a wrong token ends the connection", async (t) => {
  const client = newClient(t, { getToken: giving(token({ sub: "ana", seconds: 3 }), "no token") });
  const disconnected = record(client, "disconnected");

  client.connect();

  assert.deepEqual(await disconnected.next(), { code: 3_500, reason: "invalid token" });
});

scenario("a private topic is for bearers of a token", async (t) => {
  const topic = `$${unique("private")}`;
  const client = await connected(t, { token: token({ sub: "ana" }) });
  for (const wrong of [
    "",
    "no token",
    token({ sub: "bob", channel: topic }),
    token({ sub: "ana", channel: `${topic}2` }),
    token({ sub: "ana" }),
  ]) {
    const subscription = client.newSubscription(topic, { token: wrong });
    const unsubscribed = record(subscription, "unsubscribed");
    subscription.subscribe();
    assert.deepEqual(await unsubscribed.next(), { channel: topic, code: 103, reason: "permission denied" });
    client.removeSubscription(subscription);
  }

  const subscription = await subscribed(client, topic, {
    token: token({ sub: "ana", channel: topic, info: { seat: 7 } }),
  });
  const [info] = Object.values((await subscription.presence()).clients);

  assert.deepEqual(unpack(info.chanInfo), { seat: 7 });
});

scenario("an expired subscription token is replaced by a new one", async (t) => {
  const topic = `$${unique("private")}`;
  const client = await connected(t);
  const getToken = giving(token({ channel: topic, seconds: -5 }), token({ channel: topic }));

  await subscribed(client, topic, { getToken });

  assert.deepEqual(getToken.contexts, [{ channel: topic }, { channel: topic }]);
});

scenario("a subscription is refreshed before it ends", async (t) => {
  const topic = unique("test");
  const getToken = giving(
    () => token({ channel: topic, seconds: 3 }),
    () => token({ channel: topic, seconds: 2 }),
    () => token({ channel: topic }),
  );
  const subscription = await subscribed(await connected(t), topic, { getToken });
  const [subscribing, publications] = [record(subscription, "subscribing"), record(subscription, "publication")];

  await eventually(() => getToken.contexts.length === 3);
  await pause(5_000); // what expired last would not have been borne with for so long
  await publish(topic, "still here");

  assert.deepEqual(dataOf(await publications.take(1)), ["still here"]);
  assert.deepEqual(subscribing.unread, []);
  assert.equal(getToken.contexts.length, 3);
});

scenario("a subscription that is not refreshed ends, and begins anew", async (t) => {
  const topic = unique("test");
  const getToken = giving(
    () => token({ channel: topic, seconds: 3 }),
    () => new Promise(() => {}),
    token({ channel: topic }),
  );
  const subscription = await subscribed(await connected(t), topic, { getToken });
  const [subscribing, subscribedEvents] = [record(subscription, "subscribing"), record(subscription, "subscribed")];

  assert.deepEqual(await subscribing.next(), { channel: topic, code: 2_501, reason: "subscription expired" });
  await subscribedEvents.next();
});

scenario("a refresh with a wrong subscription token ends the subscription alone", async (t) => {
  const topic = unique("test");
  const client = await connected(t);
  const subscription = await subscribed(client, topic, {
    getToken: giving(() => token({ channel: topic, seconds: 3 }), "no token"),
  });
  const unsubscribed = record(subscription, "unsubscribed");

  assert.deepEqual(await unsubscribed.next(), { channel: topic, code: 103, reason: "permission denied" });
  assert.equal(client.state, State.Connected);
});
