/** What the tab itself shows: the count of what needs the user before the title, and a dot on the favicon. */
const title = document.title;
let count = 0;

function icon(dot: boolean): string {
  const mark = dot ? '<circle cx="24" cy="8" r="8" fill="#d92d20"/>' : "";
  const svg =
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#1f5fd0"/>' +
    '<g fill="none" stroke="#fff" stroke-width="2.5"><circle cx="16" cy="16" r="3"/>' +
    `<path d="M9 9a10 10 0 0 0 0 14M23 9a10 10 0 0 1 0 14"/></g>${mark}</svg>`;
  return `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

export function needsUser(open: number): void {
  if (open === count) return;
  count = open;
  document.title = open ? `(${open}) ${title}` : title;
  const link = document.querySelector<HTMLLinkElement>('link[rel="icon"]');
  if (link) link.href = icon(open > 0);
}
