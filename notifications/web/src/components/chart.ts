import { type PropertyDeclarations, type PropertyValues, type TemplateResult, css, html, nothing } from "lit";
import uPlot from "uplot";

import { copyable } from "../copy.js";
import { clock, number, si } from "../format.js";
import { icon } from "../icons.js";
import { base } from "../styles.js";
import { watchTheme } from "../theme.js";
import { SeriesElement } from "./series.js";

const HEIGHT = 120;
/** A silence of so many usual steps is drawn as a gap, not as a line across it. */
const GAP = 4;

/** `<hub-chart topic value label unit max span>`: a line of the last minutes of one field. */
export class HubChart extends SeriesElement {
  static override properties: PropertyDeclarations = {
    ...SeriesElement.properties,
    max: { type: Number },
    span: { type: Number },
    hovered: { state: true },
  };
  static override styles = [
    base,
    css`
      .card { padding: 12px 16px 8px; }
      .head { display: flex; align-items: center; gap: 8px; height: 32px; }
      .label{ font-size: 14px; line-height: 20px; font-weight: 600; flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
      .figure { height: 36px; font-size: 28px; line-height: 36px; font-weight: 600; white-space: nowrap; }
      .figure .unit { font-size: 14px; font-weight: 400; color: var(--_muted); }
      :host([phase="stale"]) .figure { color: var(--_muted); }
      .plot { height: ${HEIGHT}px; margin: 4px -8px 0; position: relative; contain: strict; }
      .plot > .bar { margin: 8px; height: ${HEIGHT - 16}px; }
      .plot .note { position: absolute; inset: 0; padding: 4px 8px; align-content: center; gap: 4px; overflow: auto; }
      .plot .note > .icon { display: none; }
      .probe { position: absolute; visibility: hidden; }
      .probe.line { color: var(--_line); }
      .probe.text { color: var(--_muted); }
      .probe.stroke { color: var(--chart, var(--_accent)); }
      .probe.fill { color: color-mix(in srgb, var(--chart, var(--_accent)) 14%, transparent); }
      /* The part of uPlot's own stylesheet that a chart without legend and selection needs. */
      .u-wrap { position: relative; user-select: none; }
      .u-over, .u-under { position: absolute; }
      .u-under { overflow: hidden; }
      .uplot canvas { display: block; position: relative; width: 100%; height: 100%; }
      .u-axis, .u-select, .u-legend { position: absolute; }
      .u-cursor-x { position: absolute; left: 0; top: 0; height: 100%; pointer-events: none; border-right: 1px solid var(--_muted); }
      .u-cursor-pt { position: absolute; top: 0; left: 0; border-radius: 50%; border: 0 solid; pointer-events: none; background-clip: padding-box !important; }
      .u-off { display: none; }
    `,
  ];
  protected override readonly keep = 1000;
  /** Upper end of the scale; absent: by the data. */
  declare max: number | undefined;
  /** Seconds from edge to edge. */
  declare span: number;
  /** Time of the sample under the pointer. */
  declare hovered: number | null;

  #plot: uPlot | null = null;
  #drawn = "";

  constructor() {
    super();
    this.span = 300;
    this.hovered = null;
  }

  protected override start(): void {
    super.start();
    this.whileConnected(watchTheme(() => this.#rebuild()));
    this.whileConnected(() => this.#discard());
    const resized = new ResizeObserver(() => {
      const box = this.renderRoot.querySelector(".plot");
      if (box && this.#plot && box.clientWidth) this.#plot.setSize({ width: box.clientWidth, height: HEIGHT });
    });
    resized.observe(this);
    this.whileConnected(() => resized.disconnect());
  }

  override render(): TemplateResult {
    const shown = this.samples.find((sample) => sample.time === this.hovered) ?? this.latest;
    const phase = this.phase;
    return html`<figure class="panel card" part="card" role="group" aria-label=${this.label || this.value}>
      <div class="head">
        <p class="label" part="label">${this.label || this.value}</p>
        ${phase === "live" && shown ? this.#age(shown.time) : this.freshness()}
        <hub-copy .topic=${this.topic} .type=${this.#type} .sample=${this.#sample}></hub-copy>
      </div>
      <p class="figure" part="value">
        ${shown
          ? html`${number(Number(shown.value))}${this.unit ? html`<span class="unit">&#8201;${this.unit}</span>` : nothing}`
          : html`<span class="muted">–</span>`}
      </p>
      <div class="plot" part="plot">
        ${phase === "loading" ? html`<div class="bar" role="status" aria-label="Loading"></div>` : this.#overlay()}
        <i class="probe line"></i><i class="probe text"></i><i class="probe stroke"></i><i class="probe fill"></i>
      </div>
    </figure>`;
  }

  get #type(): string {
    return this.type || "system.sample";
  }

  /** An event's data that has the value, for the commands. */
  get #sample(): unknown {
    return this.value.split(".").reduceRight<unknown>((inner, name) => ({ [name]: inner }), 1);
  }

  #age(time: number): TemplateResult {
    return this.hovered === null
      ? html`<hub-time class="small muted" part="age" datetime=${new Date(time).toISOString()}></hub-time>`
      : html`<span class="small muted" part="age">at ${clock(new Date(time))}</span>`;
  }

  #overlay(): TemplateResult | null {
    const refused = this.trouble();
    if (refused) return refused;
    if (!this.empty) return null;
    return html`<div class="note" part="empty">
      ${icon("empty")}
      <p class="title">No value yet</p>
      <p class="small">The line begins with the first event that has <code>${this.value}</code>.</p>
      ${copyable(this.curl(this.#type, this.#sample))}
    </div>`;
  }

  protected override updated(changed: PropertyValues): void {
    super.updated(changed);
    if (this.empty || this.trouble()) {
      this.#discard();
      return;
    }
    const last = this.latest!;
    const drawn = `${last.time}/${this.samples.length}/${last.offset}`;
    if (this.#plot && drawn === this.#drawn) return;
    this.#drawn = drawn;
    if (this.#plot) this.#plot.setData(this.#data());
    else this.#build();
  }

  /** Columns for uPlot, with a null where the values paused. */
  #data(): uPlot.AlignedData {
    const from = this.latest!.time - this.span * 1000;
    const samples = this.samples.filter((sample) => sample.time >= from);
    const steps = samples.slice(1).map((sample, index) => sample.time - samples[index]!.time).sort((a, b) => a - b);
    const step = steps[steps.length >> 1] ?? 1000;
    const times: number[] = [];
    const values: (number | null)[] = [];
    let before: number | null = null;
    for (const sample of samples) {
      if (before !== null && sample.time - before > step * GAP) {
        times.push((before + step) / 1000);
        values.push(null);
      }
      before = sample.time;
      times.push(sample.time / 1000);
      values.push(Number(sample.value));
    }
    return [times, values];
  }

  #build(): void {
    const box = this.renderRoot.querySelector<HTMLElement>(".plot");
    if (!box || !box.clientWidth) return;
    const colour = (name: string): string => getComputedStyle(this.renderRoot.querySelector(`.probe.${name}`)!).color;
    const [line, text, stroke, fill] = ["line", "text", "stroke", "fill"].map(colour);
    const font = `11px ${getComputedStyle(this).fontFamily}`;
    const axis = { stroke: text!, font, grid: { stroke: line!, width: 1 }, ticks: { show: false }, gap: 4 };
    this.#plot = new uPlot(
      {
        width: box.clientWidth,
        height: HEIGHT,
        padding: [8, 20, 0, 0],
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false, setScale: false }, sync: { key: this.topic, setSeries: false }, points: { size: 6 } },
        scales: {
          x: { time: true, range: (_plot, _min, max) => [max - this.span, max] },
          y: { range: (_plot, min, max) => [Math.min(0, min), this.max ?? Math.max(max * 1.15, min + 1e-9, 1)] },
        },
        axes: [
          { ...axis, size: 22, space: 72, values: (_plot, splits) => splits.map((at) => clock(new Date(at * 1000)).slice(0, 5)), incrs: [60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400] },
          { ...axis, size: 40, space: 32, values: (_plot, splits) => splits.map(si) },
        ],
        series: [{}, { stroke: stroke!, fill: fill!, width: 1.5, spanGaps: false, points: { show: false } }],
        hooks: { setCursor: [(plot) => this.#hover(plot)] },
      },
      this.#data(),
      box,
    );
  }

  #hover(plot: uPlot): void {
    const index = plot.cursor.idx;
    const time = index === null || index === undefined ? undefined : plot.data[0][index];
    this.hovered = this.samples.find((sample) => sample.time / 1000 === time)?.time ?? null;
  }

  #discard(): void {
    this.#plot?.destroy();
    this.#plot = null;
    this.#drawn = "";
  }

  #rebuild(): void {
    this.#discard();
    this.requestUpdate();
  }
}
