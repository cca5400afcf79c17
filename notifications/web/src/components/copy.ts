import { LitElement, type TemplateResult, css, html, nothing } from "lit";

import { copyable, curlFor, listenFor } from "../copy.js";
import { icon } from "../icons.js";
import { base } from "../styles.js";

/** `<hub-copy topic type data>`: a small menu with the lines that publish to the topic and listen to it. */
export class HubCopy extends LitElement {
  static override properties = {
    topic: { type: String },
    type: { type: String },
    sample: { attribute: false },
    open: { state: true },
  };
  static override styles = [
    base,
    css`
      :host { position: relative; }
      .panel {
        position: absolute; z-index: 20; inset-inline-end: 0; top: 36px; width: min(440px, calc(100vw - 48px));
        padding: 16px; display: grid; grid-template-columns: minmax(0, 1fr); gap: 8px;
      }
      .title { font-size: 12px; line-height: 16px; font-weight: 600; color: var(--_muted); }
    `,
  ];
  declare topic: string;
  declare type: string;
  declare sample: unknown;
  declare open: boolean;

  constructor() {
    super();
    this.topic = "";
    this.type = "message";
    this.sample = {};
    this.open = false;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    document.addEventListener("click", this.#outside);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    document.removeEventListener("click", this.#outside);
  }

  #outside = (event: Event): void => {
    if (!event.composedPath().includes(this)) this.open = false;
  };

  #key = (event: KeyboardEvent): void => {
    if (event.key !== "Escape" || !this.open) return;
    event.stopPropagation();
    this.open = false;
    this.renderRoot.querySelector("button")?.focus();
  };

  override render(): TemplateResult {
    return html`<div @keydown=${this.#key}>
      <button class="plain" part="button" aria-expanded=${this.open} aria-label="Commands for the topic ${this.topic}"
        title="Copy as a command" @click=${() => (this.open = !this.open)}>${icon("more")}</button>
      ${this.open
        ? html`<div class="panel" part="menu">
            <p class="title">Publish to ${this.topic}</p>
            ${copyable(curlFor(this.topic, this.type, this.sample))}
            <p class="title">Listen to it</p>
            ${copyable(listenFor(this.topic))}
          </div>`
        : nothing}
    </div>`;
  }
}
