import { type PropertyDeclarations } from "lit";

import { HubElement } from "../component.js";
import { type HubEvent, valueAt } from "../event.js";
import { PAGE } from "../topic.js";

export interface Sample {
  offset: number | null;
  /** Milliseconds since 1970. */
  time: number;
  value: unknown;
}

const follows = (sample: Sample, last: Sample): boolean =>
  sample.time > last.time || (sample.time === last.time && (sample.offset === null || sample.offset > (last.offset ?? 0)));

/** A component over one field of a topic's events: filled from what the topic keeps, then live. */
export abstract class SeriesElement extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    value: { type: String },
    type: { type: String },
    label: { type: String },
    unit: { type: String },
  };

  /** Dotted path of the field in an event's data. */
  declare value: string;
  /** Only events of this type; empty for all that have the field. */
  declare type: string;
  declare label: string;
  declare unit: string;

  protected samples: Sample[] = [];
  protected abstract readonly keep: number;

  constructor() {
    super();
    this.value = "";
    this.type = "";
    this.label = "";
    this.unit = "";
  }

  protected override get empty(): boolean {
    return this.samples.length === 0;
  }

  protected get latest(): Sample | undefined {
    return this.samples.at(-1);
  }

  protected override start(): void {
    const source = this.follow(this.topic, {
      event: (event) => this.#take(event),
      reset: () => this.fill(),
      change: () => {
        if (!this.loaded && source.state === "live") void this.fill();
        this.requestUpdate();
      },
    });
    if (source.state === "live" && !this.loaded) void this.fill();
  }

  /** Reads what the topic keeps; what has come live meanwhile stays, once. */
  protected async fill(): Promise<void> {
    const source = this.source;
    if (!source) return;
    try {
      const kept = (await source.history(Math.min(this.keep, PAGE))).flatMap((event) => this.#sample(event) ?? []);
      const [first, last] = [kept[0], kept.at(-1)];
      // By time and not by offset: offsets begin anew when a log was lost, and what was drawn stays true.
      const older = this.samples.filter((sample) => !first || sample.time < first.time);
      const newer = this.samples.filter((sample) => last && follows(sample, last));
      this.samples = [...older, ...kept, ...newer].slice(-this.keep);
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      // Below 100 are failures of the connection, after which the topic comes back and asks again.
      if (code !== undefined && code < 100) return;
      // 108: the topic keeps nothing, so that it begins empty.
      if (code !== 108 && code !== 103) this.failure = message ?? String(error);
    }
    this.loaded = true;
    this.requestUpdate();
  }

  #sample(event: HubEvent): Sample | null {
    if (this.type && event.type !== this.type) return null;
    const value = valueAt(event.data, this.value);
    return value === undefined ? null : { offset: event.offset, time: event.time.getTime(), value };
  }

  #take(event: HubEvent): void {
    const sample = this.#sample(event);
    if (!sample || (this.latest && !follows(sample, this.latest))) return;
    this.samples.push(sample);
    if (this.samples.length > this.keep) this.samples.splice(0, this.samples.length - this.keep);
    this.requestUpdate();
  }
}
