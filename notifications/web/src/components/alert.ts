import { type Cursor, hasTexts, isTime } from "../event.js";
import { type Severity, rank, severityOf } from "../severity.js";

/** One alert as the server sends it, in pages and in events. */
export interface Alert {
  id: number;
  fingerprint: string;
  source: string;
  status: "firing" | "resolved";
  severity: Severity;
  name: string;
  summary: string;
  description: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  starts_at: string;
  ends_at: string | null;
  last_seen_at: string;
  count: number;
  acknowledged_by: string | null;
  acknowledged_at: string | null;
  runbook_url: string;
  source_url: string;
}

export interface AlertsState {
  alerts: Alert[];
  /** Firing alerts beyond those that a page lists. */
  unlisted?: number;
  cursor?: Cursor | null;
}

/** Whether it can be shown: rendering one that is not whole would throw, then and for ever. */
export function isAlert(data: unknown): data is Alert {
  if (!hasTexts(data, "name", "status", "severity") || typeof data["id"] !== "number") return false;
  const { labels, starts_at, ends_at, acknowledged_at } = data;
  const times = [starts_at, ends_at ?? starts_at, acknowledged_at ?? starts_at];
  return typeof labels === "object" && labels !== null && times.every(isTime);
}

/** Firing, and nobody has taken it. */
export const open = (alert: Alert): boolean => alert.status === "firing" && !alert.acknowledged_by;

function section(alert: Alert): number {
  if (alert.status === "resolved") return 2;
  return alert.acknowledged_by ? 1 : 0;
}

/** What needs somebody first, the worst first, the newest first. */
export function byUrgency(one: Alert, other: Alert): number {
  const sections = section(one) - section(other);
  if (sections) return sections;
  if (one.status === "resolved") return (other.ends_at ?? "").localeCompare(one.ends_at ?? "");
  return rank(severityOf(one.severity)) - rank(severityOf(other.severity)) || other.starts_at.localeCompare(one.starts_at);
}

export function matches(alert: Alert, wanted: string): boolean {
  if (!wanted) return true;
  const labels = Object.entries(alert.labels).map(([name, value]) => `${name}=${value}`);
  return [alert.name, alert.summary, alert.severity, alert.status, alert.source, alert.acknowledged_by ?? "", ...labels]
    .join(" ")
    .toLowerCase()
    .includes(wanted);
}
