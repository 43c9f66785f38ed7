// A job as commands for a terminal.

/** Return curl commands that do the same job. `files`: the names of this device's, by field. */
export function curlOf(base, request, files, needsKey) {
  const key = needsKey ? ' -H "X-Internal-API-Key: $LIPSYNC_KEY"' : "";
  let body = JSON.stringify(request, null, 2).replace(/[\\$`]/g, "\\$&"); // a shell reads it
  const sending = Object.entries(files).map(([field, name]) => {
    const variable = field === "video_url" ? "VIDEO" : "VOICE";
    body = body.replace(JSON.stringify(request[field]), `"$${variable}"`);
    const url = `${base}v1/uploads/${encodeURIComponent(name)}`;
    return `${variable}=$(curl -sS${key} -T ${quoted(name)} ${quoted(url)} | grep -o 'upload://[^"]*')\n`;
  });
  return `${sending.join("")}curl -sS ${quoted(`${base}v1/avatar/jobs`)}${key} \\
  -H 'Content-Type: application/json' -d @- <<JOB\n${body}\nJOB\n`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
