import { everySecond } from "../clock.js";
import { absolute, relative } from "../format.js";

/** `<hub-time datetime="…">`: a moment as "2 min ago", ticking; the absolute local time is its title. */
export class HubTime extends HTMLElement {
  static readonly observedAttributes = ["datetime"];

  #end: (() => void) | null = null;
  #time: Date | null = null;

  connectedCallback(): void {
    this.#end = everySecond((now) => this.#show(now));
    this.#show(Date.now());
  }

  disconnectedCallback(): void {
    this.#end?.();
    this.#end = null;
  }

  attributeChangedCallback(_name: string, _old: string | null, value: string | null): void {
    const time = new Date(value ?? "");
    this.#time = Number.isNaN(time.getTime()) ? null : time;
    if (this.#time) this.title = absolute(this.#time);
    this.#show(Date.now());
  }

  #show(now: number): void {
    if (!this.#time) return;
    const text = relative(this.#time, now);
    if (this.textContent !== text) this.textContent = text;
  }
}
