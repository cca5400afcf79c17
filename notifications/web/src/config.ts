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

function read(): Config {
  const defaults: Config = { connection: "/connection/websocket", user: null, csrf: "", login: "" };
  const script = document.getElementById("hub-config");
  return script ? { ...defaults, ...(JSON.parse(script.textContent ?? "{}") as Partial<Config>) } : defaults;
}

export const config: Config = read();

/** The WebSocket address: a relative one takes scheme and host from the page. */
export function connectionAddress(): string {
  const address = new URL(config.connection, location.href);
  address.protocol = address.protocol.replace(/^http/, "ws");
  return address.href;
}
