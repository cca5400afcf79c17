import type { Severity } from "./severity.js";
import { safeAddress } from "./text.js";

/** What may call the user away from other work: off until asked for, remembered by this browser. */
export interface Wishes {
  sound: boolean;
  desktop: boolean;
}

const KEY = "hub-announce";
/** An event older than this was published while nobody was connected: it is listed, but calls nobody. */
export const FRESH = 60_000;

export function wishes(): Wishes {
  const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Partial<Wishes>;
  const permitted = "Notification" in window && Notification.permission === "granted";
  return { sound: kept.sound === true, desktop: kept.desktop === true && permitted };
}

/** Remembers the wish; asks the browser for its permission where it needs one. Call from a user's gesture only. */
export async function wish(change: Partial<Wishes>): Promise<Wishes> {
  const next = { ...wishes(), ...change };
  if (change.desktop) next.desktop = "Notification" in window && (await Notification.requestPermission()) === "granted";
  localStorage.setItem(KEY, JSON.stringify(next));
  if (change.sound) play();
  return next;
}

function play(): void {
  const audio = new AudioContext();
  const gain = audio.createGain();
  gain.gain.value = 0.08;
  gain.connect(audio.destination);
  [660, 880].forEach((pitch, index) => {
    const tone = audio.createOscillator();
    tone.frequency.value = pitch;
    tone.connect(gain);
    tone.start(audio.currentTime + index * 0.16);
    tone.stop(audio.currentTime + index * 0.16 + 0.14);
    if (index) tone.addEventListener("ended", () => void audio.close());
  });
}

/** Rings and notifies as far as the user asked for it; `id` keeps several tabs from doing so twice on the desktop. */
export function announce(news: { id: string; title: string; text: string; url?: string; severity: Severity; time: Date }): void {
  if (Date.now() - news.time.getTime() > FRESH) return;
  const { sound, desktop } = wishes();
  if (sound && news.severity === "critical") play();
  if (!desktop || !document.hidden) return;
  const notification = new Notification(news.title, { body: news.text, tag: news.id });
  const address = safeAddress(news.url);
  notification.addEventListener("click", () => {
    window.focus();
    if (address) location.assign(address);
  });
}
