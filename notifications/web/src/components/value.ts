import { type TemplateResult, css, html } from "lit";

import { absolute, number } from "../format.js";
import { base } from "../styles.js";
import { inline } from "../text.js";
import { SeriesElement } from "./series.js";

/** `<hub-value topic value unit>`: the newest value of a field, in the line of the text around it. */
export class HubValue extends SeriesElement {
  static override styles = [
    base,
    css`
      :host { display: inline; font: inherit; font-variant-numeric: tabular-nums; }
      .wait { display: inline-block; width: 4ch; height: 1em; vertical-align: -0.15em; }
      .stale { color: var(--_warning); }
    `,
  ];
  protected override readonly keep = 1;

  override render(): TemplateResult {
    const sample = this.latest;
    const phase = this.phase;
    if (phase === "forbidden") return html`<span class="muted" title="You may not read ${this.topic}">no access</span>`;
    if (phase === "failed") return html`<span class="muted" title=${this.failure}>not available</span>`;
    if (phase === "loading") return html`<span class="bar wait" title="Loading"></span>`;
    if (!sample) return html`<span class="muted" title="Nothing was published to ${this.topic} yet">–</span>`;
    const text = typeof sample.value === "number" ? number(sample.value) : inline(sample.value);
    const title = `${phase === "stale" ? "stale, of" : "of"} ${absolute(new Date(sample.time))}`;
    return html`<span class=${phase} part="value" title=${title}>${text}${this.unit ? `\u2009${this.unit}` : ""}</span>`;
  }
}
