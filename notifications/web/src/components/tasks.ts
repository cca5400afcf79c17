import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import { type Cursor, hasTexts, isTime } from "../event.js";
import { duration, number, words } from "../format.js";
import { post } from "../http.js";
import { icon } from "../icons.js";
import { badge } from "../severity.js";
import { moveFocus, shortcuts } from "../shortcuts.js";
import { base } from "../styles.js";
import { inline, safeAddress } from "../text.js";

export interface Task {
  id: string;
  name: string;
  state: "started" | "progress" | "succeeded" | "failed" | "retried";
  done: number;
  total: number | null;
  note: string;
  started_at: string;
  updated_at: string;
  finished_at: string | null;
  error: string;
  result_url: string;
}

interface TasksState {
  tasks: Task[];
  cursor?: Cursor | null;
}

const KEPT = 100;
/** A running task that has said nothing for so long may be dead. */
const SILENT = 60_000;

/** Whether it can be shown: rendering one that is not whole would throw, then and for ever. */
function isTask(data: unknown): data is Task {
  if (!hasTexts(data, "id", "name", "state")) return false;
  const { started_at, updated_at, finished_at } = data;
  return [started_at, updated_at, finished_at ?? updated_at].every(isTime);
}

const ended = (task: Task): boolean => task.state === "succeeded" || task.state === "failed";

/** `<hub-tasks topic>`: running and finished tasks as live progress bars, and the buttons that start some. */
export class HubTasks extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    prune: { type: String },
    export: { type: String },
    busy: { state: true },
    refused: { state: true },
  };
  static override styles = [
    base,
    css`
      .actions { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 16px; margin-bottom: 16px; }
      form { padding: 16px; display: grid; gap: 8px; align-content: space-between; }
      form h2 { font-size: 14px; line-height: 20px; }
      form .spread input { flex: 1; min-width: 0; }
      .refused { color: var(--_critical); }
      header { padding: 8px 8px 8px 16px; border-bottom: 1px solid var(--_line); }
      header h2 { font-size: 14px; line-height: 20px; }
      li { display: grid; grid-template-columns: 104px minmax(0, 1fr) minmax(96px, auto); gap: 4px 16px; padding: 12px 16px; border-bottom: 1px solid var(--_line); align-items: start; }
      li:last-child { border-bottom: 0; }
      .name { font-weight: 600; overflow-wrap: anywhere; }
      .side { text-align: end; display: grid; justify-items: end; gap: 4px; }
      .error { color: var(--_critical); overflow-wrap: anywhere; }
      .note-line { overflow-wrap: anywhere; min-height: 16px; }
      progress { display: block; width: 100%; height: 8px; margin: 6px 0; appearance: none; border: 0; border-radius: 4px; overflow: hidden; background: var(--_line); color: var(--_accent); }
      progress::-webkit-progress-bar { background: var(--_line); }
      progress::-webkit-progress-value { background: var(--tone, var(--_accent)); transition: width 0.3s; }
      progress::-moz-progress-bar { background: var(--tone, var(--_accent)); }
      @media (prefers-reduced-motion: reduce) { progress::-webkit-progress-value { transition: none; } }
      @media (max-width: 719px) {
        li { grid-template-columns: minmax(0, 1fr) auto; }
        .main { grid-column: 1 / -1; grid-row: 2; }
      }
    `,
  ];
  /** Addresses that start the tasks; empty: no such button. */
  declare prune: string;
  declare export: string;
  declare busy: string;
  declare refused: Record<string, string>;

  #tasks = new Map<string, Task>();

  constructor() {
    super();
    this.topic = "tasks:all";
    this.prune = "";
    this.export = "";
    this.busy = "";
    this.refused = {};
  }

  protected override get empty(): boolean {
    return this.#tasks.size === 0;
  }

  protected override start(): void {
    const printed = this.printedState<TasksState>();
    if (printed && !this.loaded) this.#load(printed);
    const source = this.follow(this.topic, {
      // Rows were printed without a position when the topic's log could not be reached.
      since: printed ? (printed.cursor ?? "unknown") : null,
      event: (event) => {
        if (event.type.startsWith("task.")) this.#put(event.data);
      },
      reset: () => (printed ? this.reload<TasksState>((state) => this.#load(state)) : this.#history()),
      change: () => {
        if (!this.loaded && source.state === "live") void this.#history();
        this.requestUpdate();
      },
    });
    if (!this.loaded && source.state === "live") void this.#history();
    this.whileConnected(
      shortcuts({ j: () => moveFocus(this.shadowRoot!, "li", 1), k: () => moveFocus(this.shadowRoot!, "li", -1) }),
    );
    const silence = window.setInterval(() => {
      if (!document.hidden) this.requestUpdate();
    }, 10_000);
    this.whileConnected(() => window.clearInterval(silence));
  }

  #load(state: TasksState): void {
    this.#tasks = new Map(state.tasks.map((task) => [task.id, task]));
    this.loaded = true;
    this.requestUpdate();
  }

  async #history(): Promise<Cursor | null> {
    try {
      for (const event of await hub.topic(this.topic).history()) this.#put(event.data);
      this.loaded = true;
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      if ((code ?? 100) >= 100 && code !== 103) this.failure = message ?? String(error);
    }
    return null;
  }

  #put(task: unknown): void {
    if (!isTask(task)) return;
    // The answer to a start can be older than the events that overtook it.
    const known = this.#tasks.get(task.id);
    if (known && known.updated_at > task.updated_at) return;
    this.#tasks.set(task.id, task);
    // A page stays open for days: ended tasks that it would not list are not kept.
    if (ended(task)) for (const old of this.#sorted().slice(KEPT)) if (ended(old)) this.#tasks.delete(old.id);
    this.requestUpdate();
  }

  #sorted(): Task[] {
    return [...this.#tasks.values()].sort(
      (one, other) => Number(ended(one)) - Number(ended(other)) || other.started_at.localeCompare(one.started_at),
    );
  }

  async #begin(event: SubmitEvent, action: string, address: string): Promise<void> {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const fields = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value)]));
    this.busy = action;
    this.refused = { ...this.refused, [action]: "" };
    try {
      this.#put(await post(address, fields));
    } catch (error) {
      this.refused = { ...this.refused, [action]: (error as Error).message };
    }
    this.busy = "";
  }

  override render(): TemplateResult {
    const trouble = this.trouble();
    if (trouble) return html`<div class="panel">${trouble}</div>`;
    return html`${this.prune || this.export ? this.#actions() : nothing}
      <section class="panel" part="tasks" aria-label="Tasks">
        <header class="spread">
          <h2 class="grow">Running and finished</h2>
          ${this.freshness()}
        </header>
        ${!this.loaded
          ? this.skeleton(5)
          : this.empty
            ? this.nothingYet("No task has run", "A Celery task whose base class is LiveTask shows its progress here:", "@app.task(base=LiveTask, bind=True)\ndef import_rows(self, path):\n    self.progress(done, total=total)")
            : html`<ul>${repeat(this.#sorted().slice(0, KEPT), (task) => task.id, (task) => this.#row(task))}</ul>`}
      </section>`;
  }

  #actions(): TemplateResult {
    const message = (action: string): TemplateResult | typeof nothing =>
      this.refused[action] ? html`<p class="refused small" role="alert">Not started: ${this.refused[action]}</p>` : nothing;
    return html`<div class="actions" part="actions">
      ${this.prune
        ? html`<form class="panel" @submit=${(event: SubmitEvent) => this.#begin(event, "prune", this.prune)}>
            <h2>Prune old events</h2>
            <p class="muted small">Deletes events that are past their topic's retention. This cannot be undone.</p>
            ${message("prune")}
            <div><button ?disabled=${this.busy === "prune"}>${icon("run")} ${this.busy === "prune" ? "Starting…" : "Prune"}</button></div>
          </form>`
        : nothing}
      ${this.export
        ? html`<form class="panel" @submit=${(event: SubmitEvent) => this.#begin(event, "export", this.export)}>
            <h2>Export a topic</h2>
            <p class="muted small">Writes the kept events of one topic to a file to download.</p>
            ${message("export")}
            <div class="spread">
              <input name="topic" required placeholder="chat:lobby" aria-label="Topic to export" autocomplete="off" spellcheck="false" />
              <button ?disabled=${this.busy === "export"}>${icon("run")} ${this.busy === "export" ? "Starting…" : "Export"}</button>
            </div>
          </form>`
        : nothing}
    </div>`;
  }

  #row(task: Task): TemplateResult {
    const tone = { started: "info", progress: "info", retried: "warning", succeeded: "ok", failed: "critical" }[task.state] ?? "info";
    const word = { started: "started", progress: "running", retried: "retrying", succeeded: "done", failed: "failed" }[task.state] ?? task.state;
    const shape = { started: "run", progress: "run", retried: "retry", succeeded: "ok", failed: "fail" }[task.state] ?? "info";
    const until = task.finished_at ? new Date(task.finished_at).getTime() : Date.now();
    const silent = !ended(task) && Date.now() - new Date(task.updated_at).getTime() > SILENT;
    const file = safeAddress(task.result_url);
    return html`<li tabindex="-1" part="task" class=${tone}>
      ${badge(tone as "info", shape as "info", word)}
      <div class="main">
        <p class="name" title=${task.id}>${words(task.name.split(".").at(-1)!)}</p>
        ${this.#bar(task)}
        <p class="note-line small muted">
          ${task.total ? `${number(task.done)} of ${number(task.total)}` : task.done ? number(task.done) : nothing}${task.note ? `${task.total || task.done ? " · " : ""}${task.note}` : nothing}
        </p>
        ${task.error ? html`<p class="error small">${inline(task.error)}</p>` : nothing}
        ${silent ? html`<p class="small stale-mark">Last news <hub-time datetime=${task.updated_at}></hub-time>; its worker may have died.</p>` : nothing}
      </div>
      <div class="side small">
        <hub-time class="muted" datetime=${task.started_at}></hub-time>
        ${task.finished_at ? html`<span class="muted">took ${duration(until - new Date(task.started_at).getTime())}</span>` : nothing}
        ${file ? html`<a href=${file} download>${"Download"}</a>` : nothing}
      </div>
    </li>`;
  }

  #bar(task: Task): TemplateResult {
    const label = `Progress of ${task.name}`;
    if (task.state === "succeeded") return html`<progress max="1" value="1" aria-label=${label}></progress>`;
    if (task.total) return html`<progress max=${task.total} value=${Math.min(task.done, task.total)} aria-label=${label}></progress>`;
    if (ended(task)) return html`<progress max="1" value="0" aria-label=${label}></progress>`;
    return html`<progress max="1" value="0" aria-label=${label} aria-valuetext="under way, its end is not known"></progress>`;
  }
}
