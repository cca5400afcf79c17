import { Centrifuge } from "centrifuge";

import { config, connectionAddress } from "./config.js";
import { observedSocket } from "./socket.js";
import { Status } from "./status.js";
import { Topic } from "./topic.js";

/** Disconnects by which the server ends a login: bad token, forced (a logout, a deactivated user), not permitted. */
const SIGNED_OUT = new Set([3500, 3503, 3507]);

/** The page's one connection to the hub, shared by every component and every script that imports `hub`. */
export class Hub {
  readonly status = new Status();
  readonly user = config.user;
  /** Ids that the server has given to this page's connections, the present one last. */
  readonly clients: string[] = [];

  #client: Centrifuge | null = null;
  #topics = new Map<string, Topic>();

  /** The topic of that name; the same object for the same name. It is subscribed while somebody follows it. */
  topic(name: string): Topic {
    let topic = this.#topics.get(name);
    if (!topic) {
      topic = new Topic(name, () => this.connect(), this.status);
      this.#topics.set(name, topic);
    }
    this.connect();
    return topic;
  }

  /** The personal topic of the signed-in user; null for a visitor. */
  get personal(): Topic | null {
    return this.user ? this.topic(`#${this.user.id}`) : null;
  }

  /** Tries again at once, after the server has ended the connection for good. */
  reconnect(): void {
    const client = this.connect();
    if (client.state === "connecting") client.disconnect();
    client.connect();
  }

  connect(): Centrifuge {
    if (this.#client) return this.#client;
    const { status } = this;
    const client = new Centrifuge(connectionAddress(), { websocket: observedSocket(status), name: "hub" });
    this.#client = client;
    announceDelays(client, (delay) => status.trying(delay));
    client.on("connecting", () => status.connecting());
    client.on("connected", ({ client: id }) => {
      this.clients.push(id);
      status.connected();
      this.#checkIdentity();
    });
    client.on("disconnected", ({ code, reason }) => {
      if (this.user && SIGNED_OUT.has(code)) status.setSignedOut(true);
      status.stopped(reason);
    });
    client.on("subscribing", ({ channel }) => this.topic(channel).subscribing());
    client.on("subscribed", (context) => {
      this.topic(context.channel).subscribed(context);
      this.#checkIdentity();
    });
    client.on("unsubscribed", ({ channel }) => {
      this.topic(channel).unsubscribed(2000, "server unsubscribe");
      this.#checkIdentity();
    });
    client.on("publication", (publication) => this.topic(publication.channel).published(publication));
    client.connect();
    return client;
  }

  // The server subscribes a signed-in client to its personal topic. A page that was rendered for somebody and is not
  // given that topic is connected as nobody: its session has ended.
  #checkIdentity(): void {
    const personal = this.personal;
    if (!personal) return;
    queueMicrotask(() => this.status.setSignedOut(personal.state !== "live"));
  }
}

/** Tells how long the SDK waits before its next try. It says so nowhere in public, and does without if that changes. */
function announceDelays(client: Centrifuge, announce: (milliseconds: number) => void): void {
  const inner = client as unknown as { _getReconnectDelay?: () => number };
  const original = inner._getReconnectDelay;
  if (typeof original !== "function") return;
  inner._getReconnectDelay = function (this: unknown): number {
    const delay = original.call(this);
    announce(delay);
    return delay;
  };
}

export const hub = new Hub();
