type Tick = (now: number) => void;

const ticks = new Set<Tick>();
let timer: number | undefined;

function beat(): void {
  const now = Date.now();
  for (const tick of ticks) tick(now);
  if (ticks.size && !document.hidden) timer = window.setTimeout(beat, 1000 - (Date.now() % 1000));
  else timer = undefined;
}

// A hidden tab keeps no timer; what it shows is put right in the moment it is seen again.
document.addEventListener("visibilitychange", () => {
  window.clearTimeout(timer);
  timer = undefined;
  if (!document.hidden) beat();
});

/** Calls `tick` each full second while the page is visible, over one timer for the whole page. Returns its end. */
export function everySecond(tick: Tick): () => void {
  ticks.add(tick);
  if (timer === undefined && !document.hidden) timer = window.setTimeout(beat, 1000 - (Date.now() % 1000));
  return () => ticks.delete(tick);
}

/** Resolves in the next animation frame; in a hidden tab not before it is shown. */
export function nextFrame(): Promise<void> {
  return new Promise((resolve) => requestAnimationFrame(() => resolve()));
}

export const calm = (): boolean => matchMedia("(prefers-reduced-motion: reduce)").matches;
