import type { Cursor } from "./event.js";

/** The signed-in person a page was rendered for. */
export interface Viewer {
  id: string;
  name: string;
  staff: boolean;
}

/** What the server tells the script about itself; printed by `{% hub_script %}`. */
export interface Config {
  /** The Centrifuge endpoint: a path of this site, or an absolute ws(s) address. */
  connection: string;
  /** Null for an anonymous visitor. */
  user: Viewer | null;
  csrf: string;
  login: string;
}

function printed<Content>(id: string): Partial<Content> {
  const script = document.getElementById(id);
  return script ? (JSON.parse(script.textContent ?? "{}") as Partial<Content>) : {};
}

const defaults: Config = { connection: "/connection/websocket", user: null, csrf: "", login: "" };

export const config: Config = { ...defaults, ...printed<Config>("hub-config") };

/**
 * The positions at which the page's view began to read, by topic; printed by `{% hub_script %}` for views that take
 * them. Null where the server could not tell.
 */
export const cursors = new Map(Object.entries(printed<Record<string, Cursor | null>>("hub-cursors")));

/** The WebSocket address: a relative one takes scheme and host from the page. */
export function connectionAddress(): string {
  const address = new URL(config.connection, location.href);
  address.protocol = address.protocol.replace(/^http/, "ws");
  return address.href;
}
