import { type TemplateResult, html } from "lit";

import { icon } from "./icons.js";

const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** A command line that publishes an event of `type` to `topic` over HTTP. */
export function curlFor(topic: string, type: string, data: unknown): string {
  const body = JSON.stringify({ channel: topic, data, tags: { type } });
  return `curl -H "X-API-Key: $HUB_API_KEY" -d ${quoted(body)} ${location.origin}/api/publish`;
}

export function listenFor(topic: string): string {
  return `python manage.py listen ${quoted(topic)}`;
}

async function copy(event: Event, text: string): Promise<void> {
  const button = event.currentTarget as HTMLElement;
  const label = button.querySelector("span")!;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    // Without a secure origin there is no clipboard: the text is selected for the user's own key.
    const code = button.parentElement?.querySelector("code");
    if (code) getSelection()?.selectAllChildren(code);
    label.textContent = "Press Ctrl+C";
  }
  window.setTimeout(() => (label.textContent = "Copy"), 2000);
}

/** A line of code with a button that copies it. */
export function copyable(command: string): TemplateResult {
  return html`<div class="command" part="command">
    <pre tabindex="0"><code>${command}</code></pre>
    <button class="small" @click=${(event: Event) => copy(event, command)}>${icon("copy")}<span aria-live="polite">Copy</span></button>
  </div>`;
}
