const THIN = "\u2009";

const absoluteFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clockFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const minuteFormat = new Intl.DateTimeFormat(undefined, { timeStyle: "short", hourCycle: "h23" });
const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dateFormat = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

export const absolute = (time: Date): string => absoluteFormat.format(time);
/** `12:03:10` */
export const clock = (time: Date): string => clockFormat.format(time);
/** `12:03` */
export const minute = (time: Date): string => minuteFormat.format(time);

const dayNumber = (time: Date): number => new Date(time.getFullYear(), time.getMonth(), time.getDate()).getTime();

export const sameDay = (one: Date, other: Date): boolean => dayNumber(one) === dayNumber(other);

/** `Today`, `Yesterday`, or the day's name and date. */
export function day(time: Date, now = new Date()): string {
  const days = Math.round((dayNumber(now) - dayNumber(time)) / 86_400_000);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return days < 300 ? dayFormat.format(time) : dateFormat.format(time);
}

/** `2 min ago`, `in 5 min`; dates older than a month by their date. */
export function relative(time: Date, now = Date.now()): string {
  const seconds = Math.round((now - time.getTime()) / 1000);
  const past = seconds >= 0;
  const amount = Math.abs(seconds);
  if (amount < 2) return "just now";
  if (amount > 30 * 86_400) return dateFormat.format(time);
  const text = coarse(amount);
  return past ? `${text} ago` : `in ${text}`;
}

function coarse(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** A length of time in its two largest units: `1 min 4 s`. */
export function duration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.max(0, Math.round(milliseconds))} ms`;
  const seconds = Math.round(milliseconds / 1000);
  const units: [number, string][] = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = units.findIndex(([size]) => seconds >= size);
  const [size, name] = units[first]!;
  const rest = units[first + 1];
  const text = `${Math.floor(seconds / size)} ${name}`;
  const left = rest ? Math.floor((seconds % size) / rest[0]) : 0;
  return rest && left ? `${text} ${left} ${rest[1]}` : text;
}

/** Groups of three digits by thin spaces; of the fraction only what matters beside the whole. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const digits = Number.isInteger(value) || size >= 100 ? 0 : size >= 1 ? 1 : 2;
  const [whole, fraction] = value.toFixed(digits).split(".");
  const grouped = whole!.replace(/\B(?=(\d{3})+(?!\d))/g, THIN);
  return fraction ? `${grouped}.${fraction}` : grouped;
}

/** For axes: `1.2k`, `3M`. */
export function si(value: number): string {
  const size = Math.abs(value);
  for (const [limit, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const) {
    if (size >= limit) return `${Number((value / limit).toPrecision(3))}${suffix}`;
  }
  return String(Number(value.toPrecision(3)));
}

/** `user.logged_in` as `user logged in`. */
export const words = (name: string): string => name.replace(/[._-]+/g, " ");

export const plural = (count: number, one: string, many = `${one}s`): string =>
  `${number(count)} ${count === 1 ? one : many}`;
