import { type TemplateResult, html } from "lit";

const PATHS = {
  critical: "M12 3 2.5 20h19L12 3Zm0 7v5m0 2.5v.5",
  warning: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm0 5v5m0 2.5v.5",
  info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm0 8v5.5M12 7.5V8",
  ok: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm-4 9.5 2.7 2.7L16 9.5",
  bell: "M6 16V11a6 6 0 0 1 12 0v5l1.5 2h-15L6 16Zm4 4.5h4",
  close: "m6 6 12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  retry: "M20 12a8 8 0 1 1-2.5-5.8M20 3v4.5h-4.5",
  send: "M4 12 20 4l-5 16-3.5-6.5L4 12Z",
  lock: "M6 11h12v9H6zM9 11V8a3 3 0 0 1 6 0v3",
  down: "M12 5v13m-6-6 6 6 6-6",
  up: "M12 19V6m-6 6 6-6 6 6",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8Zm-7.5 8.5a7.5 7.5 0 0 1 15 0",
  run: "M8 5v14l11-7L8 5Z",
  fail: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18Zm-3.5 5.5 7 7m0-7-7 7",
  empty: "M4 13 7 5h10l3 8v6H4v-6Zm0 0h5l1 2.5h4L15 13h5",
  open: "M14 4h6v6m0-6-9 9M18 14v6H4V6h6",
} as const;

export type IconName = keyof typeof PATHS;

/** Decoration beside a word that says the same; hidden from screen readers. */
export function icon(name: IconName): TemplateResult {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]}></path></svg>`;
}
