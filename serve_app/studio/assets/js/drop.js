// Files that are dropped anywhere on the page.

import { $ } from "./dom.js";

export class Drop {
  constructor(target, { onVideo, onAudio, hasVideo }) {
    let depth = 0;
    const isFiles = (event) => event.dataTransfer?.types.includes("Files");
    const show = () => $("dropping").classList.toggle("on", depth > 0);
    target.addEventListener("dragenter", (event) => {
      if (!isFiles(event)) return;
      depth += 1;
      show();
    });
    target.addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      show();
    });
    target.addEventListener("dragover", (event) => isFiles(event) && event.preventDefault());
    target.addEventListener("drop", (event) => {
      if (!isFiles(event)) return;
      event.preventDefault();
      depth = 0;
      show();
      for (const file of event.dataTransfer.files) {
        // A second video is the voice: its sound is used.
        const isVideo = /^(video|image)\//.test(file.type) && !(file.type.startsWith("video/") && hasVideo());
        if (isVideo) onVideo(file);
        else onAudio(file);
      }
    });
  }
}
