import { type TemplateResult, html } from "lit";

const ADDRESS = /\bhttps?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]}]/g;

/** An address that may stand in a link: http(s), or a path of this site; null for anything else (`javascript:` …). */
export function safeAddress(address: unknown): string | null {
  if (typeof address !== "string" || !address) return null;
  try {
    const url = new URL(address, location.href);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : null;
  } catch {
    return null;
  }
}

/** Text as it is, with its web addresses as links. */
export function linked(text: string): (string | TemplateResult)[] {
  const parts: (string | TemplateResult)[] = [];
  let end = 0;
  for (const match of text.matchAll(ADDRESS)) {
    parts.push(text.slice(end, match.index));
    parts.push(html`<a href=${match[0]} target="_blank" rel="noopener noreferrer nofollow">${match[0]}</a>`);
    end = match.index + match[0].length;
  }
  parts.push(text.slice(end));
  return parts;
}

/** A value of an event's data in one line. */
export function inline(value: unknown): string {
  if (value === null || value === undefined) return "–";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
