import { css } from "lit";

/**
 * Shared by every component. The colours are the page's custom properties; a page that has none gets the fallbacks,
 * so that the components can stand in any site.
 */
export const base = css`
  :host {
    --_surface: var(--surface, light-dark(#fff, #151a21));
    --_raised: var(--raised, light-dark(#f4f6f8, #1c232c));
    --_text: var(--text, light-dark(#1a1f27, #e4e8ee));
    --_muted: var(--muted, light-dark(#546071, #9aa6b6));
    --_line: var(--line, light-dark(#dce1e7, #2b343f));
    --_accent: var(--accent, light-dark(#1f5fd0, #7fb0ff));
    --_on-accent: var(--on-accent, light-dark(#fff, #0d1420));
    --_critical: var(--critical, light-dark(#b3201a, #ff8f86));
    --_warning: var(--warning, light-dark(#855100, #f2b655));
    --_info: var(--info, light-dark(#0b6285, #76c6ee));
    --_ok: var(--ok, light-dark(#19693b, #6fd397));
    --_radius: var(--radius, 8px);
    display: block;
    color: var(--_text);
    font: 14px/20px var(--font, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif);
    font-variant-numeric: tabular-nums;
  }
  :host([hidden]) { display: none; }
  *, ::before, ::after { box-sizing: border-box; }
  h2, h3, p, ol, ul, dl, dd, figure { margin: 0; padding: 0; }
  ol, ul { list-style: none; }
  a { color: var(--_accent); }
  code, pre { font: 12px/18px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
  :focus-visible { outline: 2px solid var(--_accent); outline-offset: 1px; }
  .icon {
    flex: none; width: 16px; height: 16px; fill: none; stroke: currentColor; stroke-width: 2;
    stroke-linecap: round; stroke-linejoin: round;
  }
  .muted { color: var(--_muted); }
  .small { font-size: 12px; line-height: 16px; }
  .spread { display: flex; align-items: center; gap: 8px; min-width: 0; }
  .spread > .grow { flex: 1; min-width: 0; }
  .hidden-text {
    position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
  }
  .panel { border: 1px solid var(--_line); border-radius: var(--_radius); background: var(--_surface); }
  button, input, textarea, select { font: inherit; color: inherit; }
  button {
    display: inline-flex; align-items: center; justify-content: center; gap: 6px; min-height: 32px; padding: 0 12px;
    border: 1px solid var(--_line); border-radius: var(--_radius); background: var(--_surface); cursor: pointer;
    white-space: nowrap;
  }
  button:hover { background: var(--_raised); }
  button:disabled { cursor: default; color: var(--_muted); }
  button.primary { border-color: var(--_accent); background: var(--_accent); color: var(--_on-accent); }
  button.primary:hover { background: color-mix(in oklab, var(--_accent) 88%, var(--_text)); }
  button.primary:disabled { border-color: var(--_line); background: var(--_raised); color: var(--_muted); }
  button.plain { min-width: 32px; padding: 0 6px; border-color: transparent; background: none; color: var(--_muted); }
  button.plain:hover { background: var(--_raised); color: var(--_text); }
  button.link {
    min-height: 0; padding: 0; border: 0; background: none; color: var(--_accent); text-decoration: underline;
  }
  input, textarea {
    min-height: 32px; padding: 5px 10px; border: 1px solid var(--_line); border-radius: var(--_radius);
    background: var(--_surface);
  }
  ::placeholder { color: var(--_muted); opacity: 1; }
  .chip {
    display: inline-flex; align-items: center; gap: 4px; max-width: 100%; padding: 1px 8px; border-radius: 10px;
    border: 1px solid var(--_line); background: var(--_raised); color: var(--_text); font-size: 12px;
    line-height: 16px; overflow-wrap: anywhere;
  }
  .critical { --tone: var(--_critical); }
  .warning { --tone: var(--_warning); }
  .info { --tone: var(--_info); }
  .ok { --tone: var(--_ok); }
  .tone { color: var(--tone, var(--_muted)); }
  .badge { display: inline-flex; align-items: center; gap: 6px; color: var(--tone, var(--_muted)); font-weight: 600; }
  .note { padding: 24px 16px; display: grid; grid-template-columns: minmax(0, 1fr); justify-items: center; gap: 8px; text-align: center; }
  .note > .icon { width: 28px; height: 28px; color: var(--_muted); stroke-width: 1.5; }
  .note p { max-width: 56ch; color: var(--_muted); }
  .note .title { color: var(--_text); font-weight: 600; }
  .command {
    display: flex; align-items: stretch; max-width: 100%; border: 1px solid var(--_line);
    border-radius: var(--_radius); background: var(--_raised); text-align: start;
  }
  .command pre { margin: 0; padding: 8px 0 8px 12px; overflow-x: auto; min-width: 0; flex: 1; }
  .command button { border-color: transparent; background: none; align-self: start; }
  .bar { border-radius: 4px; background: var(--_line); }
  .bar.line { height: 12px; }
  .skeleton { display: grid; gap: 12px; padding: 16px; }
  .stale-mark { color: var(--_warning); }
  .fresh { animation: fade-in 0.6s ease-out; }
  @keyframes fade-in { from { background-color: color-mix(in oklab, var(--_accent) 16%, transparent); } }
  @media (prefers-reduced-motion: reduce) { .fresh { animation: none; } }
`;
