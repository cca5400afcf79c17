import assert from "node:assert/strict";

import {
  connected,
  eventually,
  newClient,
  record,
  scenario,
  subscribed,
  token,
  unique,
  unpack,
} from "./kit.mjs";

/** A client with a user and info of its own, and its id. */
async function known(t, sub, name) {
  const client = newClient(t, { token: token({ sub, info: { name } }) });
  const connectedEvents = record(client, "connected");
  client.connect();
  return [client, (await connectedEvents.next()).client];
}

scenario("lists who is subscribed, and counts clients and users", async (t) => {
  const topic = unique("presence");
  const [[ana, anaId], [again, againId], [bob, bobId]] = [
    await known(t, "ana", "Ana"),
    await known(t, "ana", "Ana"),
    await known(t, "bob", "Bob"),
  ];
  for (const client of [ana, again]) await subscribed(client, topic);
  const subscription = await subscribed(bob, topic, { token: token({ sub: "bob", channel: topic, info: { seat: 1 } }) });

  const { clients } = await subscription.presence();
  const stats = await subscription.presenceStats();

  assert.deepEqual(stats, { numClients: 3, numUsers: 2 });
  assert.deepEqual(new Set(Object.keys(clients)), new Set([anaId, againId, bobId]));
  assert.deepEqual([clients[anaId].user, unpack(clients[anaId].connInfo)], ["ana", { name: "Ana" }]);
  assert.deepEqual([clients[bobId].user, unpack(clients[bobId].chanInfo)], ["bob", { seat: 1 }]);
});

scenario("who disconnects is present no more", async (t) => {
  const topic = unique("presence");
  const [stays, leaves] = [await connected(t), await connected(t)];
  const subscription = await subscribed(stays, topic);
  await subscribed(leaves, topic);
  assert.deepEqual(await subscription.presenceStats(), { numClients: 2, numUsers: 1 });

  leaves.disconnect();

  await eventually(async () => (await subscription.presenceStats()).numClients === 1);
});

scenario("joins and leaves are told to all who are there", async (t) => {
  const topic = unique();
  const [[ana, anaId], [bob, bobId]] = [await known(t, "ana", "Ana"), await known(t, "bob", "Bob")];
  const watching = ana.newSubscription(topic);
  const [joins, leaves] = [record(watching, "join"), record(watching, "leave")];

  watching.subscribe();
  const own = await joins.next();
  const passing = await subscribed(bob, topic);
  const joined = await joins.next();
  passing.unsubscribe();
  const left = await leaves.next();

  assert.deepEqual([own.channel, own.info.client], [topic, anaId]);
  for (const { channel, info } of [joined, left]) {
    assert.deepEqual([channel, info.user, info.client, unpack(info.connInfo)], [topic, "bob", bobId, { name: "Bob" }]);
  }
});

scenario("joins and leaves are told to those who asked, where it is not for all", async (t) => {
  const topic = unique("joinleave");
  const [asking, other] = [await connected(t), await connected(t)];
  const passing = await connected(t, { token: token({ sub: "passing" }) });
  const [watching, ignoring] = [
    await subscribed(asking, topic, { joinLeave: true }),
    await subscribed(other, topic),
  ];
  const [joins, leaves] = [record(watching, "join"), record(watching, "leave")];
  const unasked = [record(ignoring, "join"), record(ignoring, "leave")];

  const subscription = await subscribed(passing, topic);
  while ((await joins.next()).info.user !== "passing"); // its own join may come before
  subscription.unsubscribe();
  await leaves.next();
  await ignoring.presence();

  assert.deepEqual(unasked.flatMap(({ unread }) => unread), []);
});

scenario("a visitor has an empty user", async (t) => {
  const topic = unique();
  const watching = await subscribed(await connected(t), topic);
  const joins = record(watching, "join");

  await subscribed(await connected(t), topic);

  assert.equal((await joins.next()).info.user, "");
  for (const info of Object.values((await watching.presence()).clients)) assert.equal(info.user, "");
});
