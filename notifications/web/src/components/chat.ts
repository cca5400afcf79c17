import { type PropertyDeclarations, type PropertyValues, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { HubElement } from "../component.js";
import { config } from "../config.js";
import { hub } from "../connection.js";
import { type Cursor, type EventState, type HubEvent, eventOfState, hasTexts } from "../event.js";
import { absolute, day, minute, number, sameDay } from "../format.js";
import { icon } from "../icons.js";
import { shortcuts } from "../shortcuts.js";
import { base } from "../styles.js";
import { inline, linked } from "../text.js";
import { type Draft, Outbox } from "./outbox.js";

interface Message {
  message: string;
}

interface ChatState {
  messages: EventState<Message>[];
  cursor?: Cursor | null;
}

const OPENING = 100;
const EARLIER = 50;
/** Messages that a page holds while its reader is at their end. */
const KEPT = 500;
/** Messages of one author within so many milliseconds stand under one name. */
const TOGETHER = 300_000;

/** A room's topic can carry other events too; only these are its messages. */
function isMessage(event: HubEvent): event is HubEvent<Message> {
  return hasTexts(event.data, "message");
}

/** `<hub-chat room>`: one room; the server's order is the only order. */
export class HubChat extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    room: { type: String },
    messages: { state: true },
    unseen: { state: true },
    earlier: { state: true },
  };
  static override styles = [
    base,
    css`
      :host { height: var(--chat-height, 60vh); min-height: 320px; }
      section { height: 100%; display: flex; flex-direction: column; position: relative; }
      header { padding: 8px 8px 8px 16px; border-bottom: 1px solid var(--_line); }
      header h2 { font-size: 16px; line-height: 24px; }
      .scroller { flex: 1; overflow-y: auto; padding: 8px 16px; display: flex; flex-direction: column; }
      .scroller > :first-child { margin-top: auto; }
      .more { text-align: center; padding: 8px; }
      .day { display: flex; align-items: center; gap: 16px; padding: 12px 0 4px; color: var(--_muted); font-size: 12px; line-height: 16px; }
      .day::before, .day::after { content: ""; flex: 1; border-top: 1px solid var(--_line); }
      .message { padding: 1px 0; overflow-wrap: anywhere; }
      .message.first { padding-top: 8px; }
      .author { font-weight: 600; margin-inline-end: 8px; }
      .own .author { color: var(--_accent); }
      .text { white-space: pre-wrap; }
      .sending .text { color: var(--_muted); }
      .failed { color: var(--_critical); display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; }
      .unseen { position: absolute; z-index: 2; bottom: 72px; left: 50%; translate: -50% 0; border-radius: 16px; }
      form { display: flex; gap: 8px; padding: 12px 16px; border-top: 1px solid var(--_line); align-items: end; }
      textarea { flex: 1; min-width: 0; resize: none; max-height: 160px; field-sizing: content; }
    `,
  ];
  declare room: string;
  declare messages: HubEvent<Message>[];
  /** Messages that came while the reader was further up. */
  declare unseen: number;
  declare earlier: "some" | "loading" | "none";

  #outbox = new Outbox(
    (message) => hub.topic(this.topic).publish({ message }),
    () => this.requestUpdate(),
  );
  #atEnd = true;
  #height: number | null = null;
  /** Lowest offset that was read, of a message or not: what is earlier lies before it. */
  #first: number | null = null;

  constructor() {
    super();
    this.room = "";
    this.messages = [];
    this.unseen = 0;
    this.earlier = "some";
  }

  get #draftKey(): string {
    return `hub-draft:${config.user?.id ?? ""}:${this.room}`;
  }

  protected override get empty(): boolean {
    return this.messages.length === 0 && this.#outbox.drafts.length === 0 && this.earlier === "none";
  }

  protected override start(): void {
    this.topic = `chat:${this.room}`;
    const printed = this.printedState<ChatState>();
    if (printed && !this.loaded) this.#load(printed);
    const source = this.follow(this.topic, {
      since: printed?.cursor ?? null,
      event: (event) => this.#take(event),
      reset: () => (printed ? this.reload<ChatState>((state) => this.#load(state)) : this.#history(true)),
      change: () => {
        if (source.state === "live") {
          if (!this.loaded) void this.#history();
          queueMicrotask(() => this.#outbox.settle());
        }
        this.requestUpdate();
      },
    });
    if (!this.loaded && source.state === "live") void this.#history();
    this.whileConnected(shortcuts({ "/": () => this.renderRoot.querySelector("textarea")?.focus() }));
  }

  #load(state: ChatState): void {
    const events = state.messages
      .map((event) => eventOfState(this.topic, event))
      .sort((one, other) => (one.offset ?? 0) - (other.offset ?? 0));
    this.messages = events.filter(isMessage);
    this.#begin(events[0]?.offset ?? null);
    this.loaded = true;
  }

  #begin(first: number | null): void {
    this.#first = first;
    this.earlier = (first ?? 1) > 1 ? "some" : "none";
  }

  async #history(anew = false): Promise<Cursor | null> {
    try {
      const kept = await hub.topic(this.topic).history(OPENING);
      const last = kept.at(-1)?.offset ?? 0;
      this.messages = [...kept.filter(isMessage), ...(anew ? [] : this.messages.filter((event) => (event.offset ?? 0) > last))];
      this.#begin(kept[0]?.offset ?? null);
      this.loaded = true;
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      if (code === 108) {
        this.#begin(null);
        this.loaded = true;
      } else if ((code ?? 100) >= 100 && code !== 103) this.failure = message ?? String(error);
    }
    return null;
  }

  async #loadEarlier(): Promise<void> {
    const first = this.#first;
    if (first === null) return;
    this.earlier = "loading";
    try {
      let before: number | null = first;
      let messages: HubEvent<Message>[] = [];
      // A whole page can be without a message: then the reader would have asked for nothing.
      while (before !== null && !messages.length) {
        const events: HubEvent[] = await hub.topic(this.topic).before(before, EARLIER);
        // The room was loaded again meanwhile: these events may not be those before its messages.
        if (this.#first !== first) return;
        messages = events.filter(isMessage);
        before = events.length === EARLIER ? events[0]!.offset : null;
      }
      this.#height = this.#scroller?.scrollHeight ?? null;
      this.messages = [...messages, ...this.messages];
      this.#begin(before);
    } catch {
      this.earlier = "some";
    }
  }

  #take(event: HubEvent): void {
    if (!isMessage(event)) return;
    if (event.offset !== null && this.messages.some((known) => known.offset === event.offset)) return;
    const own = this.#outbox.echo(event, hub.clients);
    this.messages = [...this.messages, event];
    if (this.#atEnd) this.#forgetOld();
    else if (!own) this.unseen += 1;
  }

  // A page stays open for days. What it drops can be read again, where the topic keeps it.
  #forgetOld(): void {
    if (this.messages.length <= KEPT || this.earlier === "loading") return;
    this.messages = this.messages.slice(-KEPT);
    this.#begin(this.messages[0]!.offset);
  }

  get #scroller(): HTMLElement | null {
    return this.renderRoot.querySelector<HTMLElement>(".scroller");
  }

  protected override updated(changed: PropertyValues): void {
    super.updated(changed);
    const scroller = this.#scroller;
    if (!scroller) return;
    if (this.#height !== null) {
      scroller.scrollTop += scroller.scrollHeight - this.#height;
      this.#height = null;
    } else if (this.#atEnd) scroller.scrollTop = scroller.scrollHeight;
  }

  protected override firstUpdated(): void {
    const field = this.renderRoot.querySelector("textarea");
    if (field) field.value = localStorage.getItem(this.#draftKey) ?? "";
  }

  #scrolled = (event: Event): void => {
    const { scrollHeight, scrollTop, clientHeight } = event.target as HTMLElement;
    this.#atEnd = scrollHeight - scrollTop - clientHeight < 24;
    if (this.#atEnd && this.unseen) this.unseen = 0;
  };

  #toEnd(): void {
    this.#atEnd = true;
    this.unseen = 0;
    this.requestUpdate();
  }

  #typed = (event: Event): void => {
    const text = (event.target as HTMLTextAreaElement).value;
    if (text) localStorage.setItem(this.#draftKey, text);
    else localStorage.removeItem(this.#draftKey);
  };

  #key = (event: KeyboardEvent): void => {
    if (event.key === "Escape") (event.target as HTMLElement).blur();
    // The Enter that ends a composition chooses a word; it does not send.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#send();
  };

  #send(): void {
    const field = this.renderRoot.querySelector("textarea")!;
    const message = field.value.trim();
    if (!message) return;
    field.value = "";
    localStorage.removeItem(this.#draftKey);
    this.#outbox.send(message);
    this.#toEnd();
    field.focus();
  }

  override render(): TemplateResult {
    const trouble = this.trouble();
    if (trouble) return html`<section class="panel">${trouble}</section>`;
    return html`<section class="panel" part="room" aria-label="Room ${this.room}">
      <header class="spread">
        <h2 class="grow">#${this.room}</h2>
        ${this.freshness()}
        <hub-copy .topic=${this.topic} type="chat.message" .sample=${{ message: "hi" }}></hub-copy>
      </header>
      <div class="scroller" part="messages" role="log" aria-label="Messages" tabindex="0" @scroll=${this.#scrolled}>
        ${!this.loaded ? this.skeleton(6) : this.empty ? this.#silence() : this.#list()}
      </div>
      ${this.unseen
        ? html`<button class="unseen primary small" @click=${() => this.#toEnd()}>${icon("down")} ${number(this.unseen)} new</button>`
        : nothing}
      <form part="composer" @submit=${(event: Event) => (event.preventDefault(), this.#send())}>
        <textarea rows="1" maxlength="4000" placeholder="Message #${this.room}" aria-label="Message" @input=${this.#typed} @keydown=${this.#key}></textarea>
        <button class="primary" aria-label="Send">${icon("send")}</button>
      </form>
    </section>`;
  }

  #silence(): TemplateResult {
    return this.nothingYet("Nobody has written here yet", "Write the first message below, or send it from a shell:", this.curl("chat.message", { message: "hi" }));
  }

  #list(): TemplateResult {
    return html`<div>
      ${this.earlier === "none"
        ? nothing
        : html`<p class="more"><button class="small" ?disabled=${this.earlier === "loading"} @click=${() => this.#loadEarlier()}>${this.earlier === "loading" ? "Loading…" : "Earlier messages"}</button></p>`}
      ${repeat(this.messages, (event) => event.id || event.offset, (event, index) => this.#message(event, this.messages[index - 1]))}
      ${repeat(this.#outbox.drafts, (draft) => draft.id, (draft) => this.#draft(draft))}
    </div>`;
  }

  #message(event: HubEvent<Message>, before: HubEvent<Message> | undefined): TemplateResult {
    const newDay = !before || !sameDay(before.time, event.time);
    const author = event.sender?.name || "the hub";
    const first = newDay || before.sender?.user !== event.sender?.user || author !== (before.sender?.name || "the hub") || event.time.getTime() - before.time.getTime() > TOGETHER;
    const own = hub.user !== null && event.sender?.user === hub.user.id;
    return html`${newDay ? html`<p class="day"><span>${day(event.time)}</span></p>` : nothing}
      <div class="message ${first ? "first" : ""} ${own ? "own" : ""}" part="message" title=${absolute(event.time)}>
        ${first ? html`<p><span class="author">${author}</span><time class="small muted" datetime=${event.time.toISOString()}>${minute(event.time)}</time></p>` : nothing}
        <p class="text">${linked(inline(event.data.message))}</p>
      </div>`;
  }

  #draft(draft: Draft): TemplateResult {
    return html`<div class="message first own ${draft.state}-draft" part="draft">
      <p><span class="author">${hub.user?.name ?? "you"}</span><span class="small muted">${draft.state === "sending" ? `sending… ${draft.reason}` : "not sent"}</span></p>
      <div class="sending"><p class="text">${linked(draft.message)}</p></div>
      ${draft.state === "failed"
        ? html`<p class="failed small" role="alert">${draft.reason}
            <button class="link" @click=${() => this.#outbox.retry(draft)}>Retry</button>
            <button class="link" @click=${() => this.#outbox.drop(draft)}>Discard</button></p>`
        : nothing}
    </div>`;
  }
}
