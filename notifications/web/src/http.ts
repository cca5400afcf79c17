import { config } from "./config.js";

/** An action that the server refused, or that did not reach it; the message is for the reader. */
export class Failure extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function explain(response: Response): Promise<string> {
  try {
    const problem = (await response.json()) as { detail?: unknown; title?: unknown; error?: unknown };
    for (const text of [problem.detail, problem.title, problem.error]) {
      if (typeof text === "string" && text) return text;
    }
  } catch {
    // Not a problem document: the status says enough.
  }
  if (response.status === 403) return "You are not allowed to do this.";
  if (response.status === 404) return "This no longer exists.";
  return `The hub answered ${response.status}. Try again.`;
}

async function send(address: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address, { credentials: "same-origin", ...init });
  } catch {
    throw new Failure(0, "The hub cannot be reached. Try again when the connection is back.");
  }
  // A session that ended answers with the login page, which is not what was asked for.
  if (response.redirected && config.login && new URL(response.url).pathname === config.login) {
    throw new Failure(401, "You are signed out. Sign in again.");
  }
  if (!response.ok) throw new Failure(response.status, await explain(response));
  return response;
}

/** Django's token as it is now: a login in another tab has changed it since this page was printed. */
function csrfToken(): string {
  const cookie = /(?:^|;\s*)csrftoken=([^;]+)/.exec(document.cookie);
  // A site may keep the cookie from scripts, or give it another name.
  return cookie ? cookie[1]! : config.csrf;
}

/** POSTs a form with the CSRF token; resolves to the JSON answer, or undefined if there is no body. Throws `Failure`. */
export async function post(address: string, fields: Record<string, string> = {}): Promise<unknown> {
  const response = await send(address, {
    method: "POST",
    body: new URLSearchParams(fields),
    headers: { Accept: "application/json", "X-CSRFToken": csrfToken() },
  });
  return response.status === 204 ? undefined : response.json();
}

let pending: Promise<Document> | null = null;

/** This page as the server renders it now; components that ask at the same time share one request. Throws `Failure`. */
export function currentPage(): Promise<Document> {
  pending ??= send(location.href, { headers: { Accept: "text/html" }, cache: "no-store" })
    .then((response) => response.text())
    .then((text) => new DOMParser().parseFromString(text, "text/html"))
    .finally(() => {
      pending = null;
    });
  return pending;
}
