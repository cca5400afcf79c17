function typing(event: KeyboardEvent): boolean {
  const target = event.composedPath()[0];
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** Single keys for the whole page, silent while the user types or holds a modifier. Returns the end of it. */
export function shortcuts(keys: Record<string, () => void>): () => void {
  const press = (event: KeyboardEvent): void => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || typing(event)) return;
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };
  document.addEventListener("keydown", press);
  return () => document.removeEventListener("keydown", press);
}

/** Moves the focus among the elements of `root` that match `selector`; from outside to the first one. */
export function moveFocus(root: ShadowRoot, selector: string, step: 1 | -1): void {
  const rows = [...root.querySelectorAll<HTMLElement>(selector)];
  const at = rows.findIndex((row) => row === root.activeElement || row.contains(root.activeElement));
  const next = at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + step));
  rows[next]?.focus();
  rows[next]?.scrollIntoView({ block: "nearest" });
}
