import { type TemplateResult, html } from "lit";

import { type IconName, icon } from "./icons.js";

export type Severity = "critical" | "warning" | "info";

const ORDER: readonly Severity[] = ["critical", "warning", "info"];

export function severityOf(value: unknown): Severity {
  return ORDER.includes(value as Severity) ? (value as Severity) : "info";
}

/** For sorting: the worst first. */
export const rank = (severity: Severity): number => ORDER.indexOf(severity);

/** Colour, icon and word together. */
export function badge(tone: Severity | "ok" | "none", name: IconName, word: string): TemplateResult {
  return html`<span class="badge ${tone}">${icon(name)}<span>${word}</span></span>`;
}

export const severityBadge = (severity: Severity): TemplateResult => badge(severity, severity, severity);
