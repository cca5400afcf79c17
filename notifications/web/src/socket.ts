import type { Status } from "./status.js";

/** What of a command or reply is read here; both travel as one JSON object a line. */
interface Line {
  id?: number;
  connect?: { ping?: number };
}

/**
 * A WebSocket class that notes every message from the server in `status`, for the SDK's `websocket` option. The SDK
 * answers pings by itself and shows them to nobody, so only the socket knows when the server last spoke.
 */
export function observedSocket(status: Status): typeof WebSocket {
  return class ObservedSocket extends WebSocket {
    #asked: { id: number; at: number } | null = null;

    constructor(address: string | URL, protocols?: string | string[]) {
      super(address, protocols);
      this.addEventListener("message", (message: MessageEvent<unknown>) => {
        status.received();
        // Replies are parsed a second time only while one is timed: not the stream of events.
        if (this.#asked && typeof message.data === "string") this.#measure(message.data);
      });
    }

    override send(data: Parameters<WebSocket["send"]>[0]): void {
      if (!this.#asked && typeof data === "string") {
        const { id } = JSON.parse(data.split("\n", 1)[0]!) as Line;
        if (id) this.#asked = { id, at: performance.now() };
      }
      super.send(data);
    }

    #measure(frame: string): void {
      for (const line of frame.split("\n")) {
        const reply = line ? (JSON.parse(line) as Line) : {};
        if (!this.#asked || reply.id !== this.#asked.id) continue;
        status.latency = performance.now() - this.#asked.at;
        this.#asked = null;
        if (reply.connect?.ping) status.ping = reply.connect.ping * 1000;
      }
    }
  };
}
