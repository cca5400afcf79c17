import type { ClientInfo, PublicationContext } from "centrifuge";

/** Who published an event, where the server knows it. */
export interface Sender {
  user: string;
  client: string;
  name: string;
}

/** Position in a topic: the last event seen, and the unbroken run of offsets that it belongs to. */
export interface Cursor {
  offset: number;
  epoch: string;
}

/** One event of a topic, as a page sees it. */
export interface HubEvent<Data = unknown> {
  /** UUIDv7; empty if the publisher's server sent none. */
  id: string;
  type: string;
  topic: string;
  data: Data;
  time: Date;
  /** Null on a topic that keeps nothing. */
  offset: number | null;
  key: string | null;
  sender: Sender | null;
}

/** An event as the server prints it into a page. */
export interface EventState<Data = unknown> {
  id: string;
  type: string;
  topic?: string;
  data: Data;
  time?: string;
  offset: number | null;
  key?: string | null;
  sender?: { user: string; client?: string; info?: { name?: string } | null } | null;
}

/** The moment in the first 48 bits of a UUIDv7; null if `id` is not one. */
export function timeOf(id: string): Date | null {
  const match = /^([0-9a-f]{8})-([0-9a-f]{4})-7/i.exec(id);
  return match ? new Date(Number.parseInt(match[1]! + match[2]!, 16)) : null;
}

function nameIn(info: unknown): string {
  const name = (info as { name?: unknown } | null | undefined)?.name;
  return typeof name === "string" ? name : "";
}

export function senderOf(info: ClientInfo | undefined): Sender | null {
  if (!info) return null;
  return { user: info.user, client: info.client, name: nameIn(info.connInfo) || info.user };
}

export function eventOf(topic: string, publication: PublicationContext): HubEvent {
  const tags = publication.tags ?? {};
  const id = tags["id"] ?? "";
  return {
    id,
    type: tags["type"] ?? "message",
    topic,
    data: publication.data as unknown,
    time: timeOf(id) ?? new Date(),
    offset: publication.offset ?? null,
    key: tags["key"] ?? null,
    sender: senderOf(publication.info),
  };
}

export function eventOfState<Data>(topic: string, state: EventState<Data>): HubEvent<Data> {
  const sender = state.sender;
  return {
    id: state.id,
    type: state.type,
    topic: state.topic ?? topic,
    data: state.data,
    time: timeOf(state.id) ?? new Date(state.time ?? Date.now()),
    offset: state.offset,
    key: state.key ?? null,
    sender: sender
      ? { user: sender.user, client: sender.client ?? "", name: nameIn(sender.info) || sender.user }
      : null,
  };
}

/** Whether `data` is an object with a text under each of `names`: anybody who may publish decides what comes. */
export function hasTexts(data: unknown, ...names: string[]): data is Record<string, unknown> {
  if (typeof data !== "object" || data === null) return false;
  return names.every((name) => typeof (data as Record<string, unknown>)[name] === "string");
}

export const isTime = (value: unknown): value is string => typeof value === "string" && !Number.isNaN(Date.parse(value));

/** The number or text at a dotted path of an event's data; undefined if there is none. */
export function valueAt(data: unknown, path: string): unknown {
  let value = data;
  for (const part of path ? path.split(".") : []) {
    if (typeof value !== "object" || value === null) return undefined;
    value = (value as Record<string, unknown>)[part];
  }
  return value;
}
