import assert from "node:assert/strict";

import {
  api,
  connected,
  newClient,
  pack,
  pause,
  record,
  rejection,
  scenario,
  State,
  token,
  transport,
  unique,
} from "./kit.mjs";

scenario("connects and disconnects", async (t) => {
  const client = newClient(t, { name: "scenario", version: "1.2.3", data: pack({ from: "here" }) });
  const connectedEvents = record(client, "connected");
  const disconnectedEvents = record(client, "disconnected");

  client.connect();
  await client.ready();
  const context = await connectedEvents.next();
  assert.equal(client.state, State.Connected);
  client.disconnect();

  assert.match(context.client, /^[0-9a-f]{32}$/);
  assert.equal(context.transport, transport);
  assert.deepEqual(await disconnectedEvents.next(), { code: 0, reason: "disconnect called" });
  assert.equal(client.state, State.Disconnected);
});

scenario("connects after a loop of connecting and disconnecting", async (t) => {
  const client = newClient(t);
  for (let index = 0; index < 10; index++) {
    client.connect();
    client.disconnect();
  }
  assert.equal(client.state, State.Disconnected);

  client.connect();
  await client.ready();

  assert.equal(client.state, State.Connected);
});

scenario("sends what was called before it connected", async (t) => {
  const client = newClient(t);

  const answer = rejection(client.rpc("no.such.method", pack({})));
  client.connect();

  assert.deepEqual(await answer, { code: 104, message: "method not found", temporary: false });
});

scenario("comes back when the network does", async (t) => {
  const network = new EventTarget();
  const client = newClient(t, { networkEventTarget: network });
  const connecting = record(client, "connecting");
  client.connect();
  await client.ready();
  await connecting.next();

  network.dispatchEvent(new Event("offline"));
  const context = await connecting.next();
  network.dispatchEvent(new Event("online"));
  await client.ready();

  assert.deepEqual(context, { code: 1, reason: "transport closed" });
  assert.equal(client.state, State.Connected);
});

scenario("stays disconnected when the network comes back", async (t) => {
  const network = new EventTarget();
  const client = await connected(t, { networkEventTarget: network });

  client.disconnect();
  network.dispatchEvent(new Event("online"));

  assert.equal(client.state, State.Disconnected);
});

scenario("reconnects when the network was lost before the transport opened", async (t) => {
  const network = new EventTarget();
  const client = newClient(t, { networkEventTarget: network });
  client.once("__centrifuge_debug:transport_initialized", () => network.dispatchEvent(new Event("offline")));

  client.connect();
  await client.ready();

  assert.equal(client.state, State.Connected);
});

scenario("outlives many pings", async (t) => {
  const client = await connected(t, { maxServerPingDelay: 2_000 });
  const connecting = record(client, "connecting");

  await pause(3_500);

  assert.deepEqual(connecting.unread, []);
  assert.equal(client.state, State.Connected);
});

scenario("reconnects after a code that lets it", async (t) => {
  const user = unique();
  const client = await connected(t, { token: token({ sub: user }) });
  const [connecting, connectedEvents] = [record(client, "connecting"), record(client, "connected")];

  await api("disconnect", { user, disconnect: { code: 4_000, reason: "come back" } });

  assert.deepEqual(await connecting.next(), { code: 4_000, reason: "come back" });
  await connectedEvents.next();
});

scenario("stays away after a code that says so", async (t) => {
  for (const [code, reason] of [
    [3_503, "force disconnect"],
    [4_500, "stay away"],
  ]) {
    const user = unique();
    const client = await connected(t, { token: token({ sub: user }) });
    const disconnected = record(client, "disconnected");

    await api("disconnect", { user, disconnect: { code, reason } });

    assert.deepEqual(await disconnected.next(), { code, reason });
    assert.equal(client.state, State.Disconnected);
  }
});

scenario("goes on to the next transport when one does not answer", async (t) => {
  const client = newClient(t, {}, [{ transport: "websocket", endpoint: "ws://127.0.0.1:1/connection/websocket" }]);
  const connectedEvents = record(client, "connected");

  client.connect();

  assert.equal((await connectedEvents.next()).transport, transport);
});
