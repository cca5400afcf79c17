/** Light or dark: the system's choice until the user makes one, which this browser remembers. */
const KEY = "hub-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
const watchers = new Set<() => void>();

function tell(): void {
  for (const watcher of watchers) watcher();
}

export function isDark(): boolean {
  const chosen = document.documentElement.dataset["theme"];
  return chosen ? chosen === "dark" : dark.matches;
}

export function toggleTheme(): void {
  const next = isDark() ? "light" : "dark";
  // A choice that equals the system's is no choice: the page goes on following the system.
  if ((next === "dark") === dark.matches) {
    delete document.documentElement.dataset["theme"];
    localStorage.removeItem(KEY);
  } else {
    document.documentElement.dataset["theme"] = next;
    localStorage.setItem(KEY, next);
  }
  tell();
}

export function watchTheme(watcher: () => void): () => void {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

dark.addEventListener("change", tell);
window.addEventListener("storage", (change) => {
  if (change.key !== KEY) return;
  if (change.newValue) document.documentElement.dataset["theme"] = change.newValue;
  else delete document.documentElement.dataset["theme"];
  tell();
});
