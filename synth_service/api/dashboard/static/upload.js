// Uploading a checkpoint with a bar that moves. XMLHttpRequest, since fetch does not tell how much has been sent.

function send(file, { onProgress, onStart }) {
  return new Promise((resolve, reject) => {
    const upload = new XMLHttpRequest();
    upload.open("POST", `/models?filename=${encodeURIComponent(file.name.slice(-200))}`);
    upload.setRequestHeader("Accept", "application/json");
    upload.setRequestHeader("Content-Type", "application/octet-stream");
    upload.setRequestHeader("X-CSRF-Token", document.querySelector("meta[name=csrf-token]").content);
    upload.responseType = "json";
    upload.upload.addEventListener("progress", (event) => onProgress(event.loaded));
    upload.addEventListener("load", () => {
      const answer = upload.response;
      if (upload.status === 201) resolve(answer);
      else reject(new Error([answer?.detail, answer?.hint].filter(Boolean).join(" ") || `The service answered ${upload.status}.`));
    });
    upload.addEventListener("error", () => reject(new Error("The upload broke off. Try again.")));
    upload.addEventListener("abort", () => reject(new Error("Stopped.")));
    onStart(() => upload.abort());
    upload.send(file);
  });
}

/**
 * Makes the upload buttons of a form work.
 * `done(input, model)` is called with the field that the button belongs to and the answer of POST /models.
 */
export function attachUploads(form, { maxBytes, describeBytes, done }) {
  for (const button of form.querySelectorAll("[data-upload]")) {
    const input = document.getElementById(button.dataset.upload);
    const panel = form.querySelector(`[data-upload-state="${input.id}"]`);
    const text = panel.querySelector("[data-upload-text]");
    const bar = panel.querySelector("progress");
    const stop = panel.querySelector("[data-upload-stop]");

    button.addEventListener("change", async () => {
      const [file] = button.files;
      if (!file) return;
      panel.hidden = false;
      bar.hidden = false;
      bar.value = 0;
      if (file.size > maxBytes) {
        bar.hidden = stop.hidden = true;
        text.textContent = `${file.name} has ${describeBytes(file.size)}; this service takes ${describeBytes(maxBytes)}.`;
        button.value = "";
        return;
      }
      stop.hidden = false;
      button.disabled = true;
      try {
        const model = await send(file, {
          onStart: (abort) => (stop.onclick = abort),
          onProgress(sent) {
            bar.value = file.size ? sent / file.size : 1;
            const isSent = sent >= file.size;
            text.textContent = isSent ? "Looking into the file …" : `${describeBytes(sent)} of ${describeBytes(file.size)}`;
          },
        });
        const [likely] = model.architectures;
        text.textContent = `${file.name}: ${describeBytes(model.bytes)}, ${model.format}${likely ? `, looks like ${likely}` : ""}.`;
        done(input, model);
      } catch (error) {
        text.textContent = error.message;
      } finally {
        bar.hidden = stop.hidden = true;
        button.disabled = false;
        button.value = ""; // so that the same file can be chosen again
      }
    });
  }
}
