import type { HubEvent } from "../event.js";
import { words } from "../format.js";
import { type Severity, severityOf } from "../severity.js";
import { safeAddress } from "../text.js";

/** A personal event as it is shown to its person. */
export interface Note {
  id: string;
  title: string;
  text: string;
  severity: Severity;
  address: string | null;
  time: Date;
}

/** Events of the personal topic that tell the page something, not the person. */
const SILENT = new Set(["broadcast.dismissed"]);

export function noteOf(event: HubEvent): Note | null {
  if (SILENT.has(event.type)) return null;
  const data = (typeof event.data === "object" && event.data !== null ? event.data : {}) as Record<string, unknown>;
  const said = (name: string): string => (typeof data[name] === "string" ? data[name] : "");
  return {
    id: event.id || String(event.offset),
    title: said("title") || words(event.type),
    text: said("text"),
    severity: severityOf(data["severity"]),
    address: safeAddress(data["url"]),
    time: event.time,
  };
}
