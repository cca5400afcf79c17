// What the scenarios share: clients of the unmodified SDK on the transport and codec under test, calls of the HTTP
// API, signed tokens, and events that are waited for.

import { createHmac, randomUUID } from "node:crypto";
import { describe, test } from "node:test";
import { pathToFileURL } from "node:url";

const { HUB_URL, SDK_PATH, SDK_TRANSPORT, SDK_CODEC } = process.env;
const TOKEN_SECRET = "secret";
const API_KEY = "test-api-key";
const TIMEOUT_MS = 15_000;

export const transport = SDK_TRANSPORT;
const binary = SDK_CODEC === "protobuf";

const build = binary ? "build/protobuf/index.mjs" : "build/index.mjs";
export const { Centrifuge, State, SubscriptionState, UnauthorizedError } = await import(
  pathToFileURL(`${SDK_PATH}/${build}`)
);

const endpoint =
  transport === "websocket"
    ? `${HUB_URL.replace("http", "ws")}/connection/websocket`
    : `${HUB_URL}/connection/${transport}`;

const scenarios = [];

export const scenario = (name, body) => scenarios.push([name, body]);

/** Run the scenarios, many of them side by side: each has topics and users of its own. */
export function run() {
  describe("all", { concurrency: 10 }, () => {
    for (const [name, body] of scenarios) test(name, { timeout: 30_000 }, body);
  });
}

/** A client that is not connected yet, and tries other endpoints `before`; the scenario `t` disconnects it at its end. */
export function newClient(t, options = {}, before = []) {
  const client = new Centrifuge([...before, { transport, endpoint }], {
    emulationEndpoint: `${HUB_URL}/emulation`,
    timeout: TIMEOUT_MS,
    minReconnectDelay: 50,
    maxReconnectDelay: 500,
    ...options,
  });
  t.after(() => client.disconnect());
  return client;
}

/** A client that is connected. */
export async function connected(t, options) {
  const client = newClient(t, options);
  client.connect();
  await client.ready(TIMEOUT_MS);
  return client;
}

/** A subscription that is established. */
export async function subscribed(client, topic, options) {
  const subscription = client.newSubscription(topic, { minResubscribeDelay: 50, maxResubscribeDelay: 500, ...options });
  subscription.subscribe();
  await subscription.ready(TIMEOUT_MS);
  return subscription;
}

/** A name that no other scenario uses, in a namespace or in none. */
export const unique = (namespace = "") => (namespace ? `${namespace}:${randomUUID()}` : randomUUID());

/** What is published: binary clients send and get bytes. */
export const pack = (value) => (binary ? new TextEncoder().encode(JSON.stringify(value)) : value);
export const unpack = (data) => (binary ? JSON.parse(new TextDecoder().decode(data)) : data);
export const dataOf = (contexts) => contexts.map(({ data }) => unpack(data));

/** Call a method of the HTTP API. */
export async function api(method, parameters) {
  const response = await fetch(`${HUB_URL}/api/${method}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-API-Key": API_KEY },
    body: JSON.stringify(parameters),
  });
  const answer = await response.json();
  if (!response.ok || answer.error) throw new Error(`${method}: ${response.status} ${JSON.stringify(answer)}`);
  return answer.result ?? answer;
}

export const publish = (channel, data, rest) => api("publish", { channel, data, ...rest });

/** A token that is signed as the hub expects it; `seconds` are until it expires. */
export function token({ seconds, ...claims }, secret = TOKEN_SECRET) {
  if (seconds !== undefined) claims.exp = Date.now() / 1000 + seconds;
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

function inTime(promise, what) {
  const timer = Promise.withResolvers();
  const timeout = setTimeout(() => timer.reject(new Error(`${what} did not come`)), TIMEOUT_MS);
  return Promise.race([promise, timer.promise]).finally(() => clearTimeout(timeout));
}

/** Keeps the events of a client or subscription from now on, to be read one after the other. */
export function record(emitter, event) {
  const seen = [];
  const waiting = [];
  emitter.on(event, (context) => (waiting.length ? waiting.shift()(context) : seen.push(context)));
  const next = () => {
    if (seen.length) return Promise.resolve(seen.shift());
    const { promise, resolve } = Promise.withResolvers();
    waiting.push(resolve);
    return inTime(promise, `the next "${event}"`);
  };
  return {
    next,
    /** The next so many. */
    async take(count) {
      const taken = [];
      while (taken.length < count) taken.push(await next());
      return taken;
    },
    /** Those that came and were not read. */
    unread: seen,
  };
}

/** Wait until a condition, which may be asynchronous, holds. */
export async function eventually(condition) {
  const deadline = Date.now() + TIMEOUT_MS;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`did not come true: ${condition}`);
    await pause(20);
  }
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The error with which a promise is rejected. */
export const rejection = (promise) =>
  promise.then(
    (value) => {
      throw new Error(`was not rejected, but gave ${JSON.stringify(value)}`);
    },
    (error) => error,
  );
