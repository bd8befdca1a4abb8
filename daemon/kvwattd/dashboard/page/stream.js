// Frames of /api/v1/events. By fetch and not EventSource, which cannot send a token.

let token = sessionStorage.getItem("kvwatt-token") || "";

export function setToken(value) {
  token = value.trim();
  sessionStorage.setItem("kvwatt-token", token);
}

export const hasToken = () => token !== "";

export function headers(more = {}) {
  return token ? { Authorization: `Bearer ${token}`, ...more } : more;
}

/** One document of the interface; null where it does not answer. */
export async function read(path) {
  const answer = await fetch(`/api/v1/${path}`, { headers: headers(), cache: "no-store" }).catch(() => null);
  return answer?.ok ? answer.json() : null;
}

/**
 * Calls `onFrame` with every frame, and `onState` with "live", "token needed" or why there is none, and when the
 * newest frame was made (null before the first); never ends.
 */
export async function follow(onFrame, onState) {
  let newest_s = null;
  for (;;) {
    try {
      const answer = await fetch("/api/v1/events", { headers: headers(), cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) {
        onState("token needed", newest_s);
        await pause(3000);
        continue;
      }
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      for await (const frame of frames(answer.body)) {
        newest_s = frame.unix_s;
        onState("live", newest_s);
        await onFrame(frame);
      }
    } catch (error) {
      onState(`no answer: ${error.message}`, newest_s);
      await pause(1000);
    }
  }
}

async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
