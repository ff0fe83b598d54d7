// A page that is opened from a folder may not start a worker. Its search then runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => {
        const copy = structuredClone(data);
        setTimeout(() => this.onmessage?.({ data: copy }));
      };
      this.loaded = new Promise((done, failed) => {
        const script = inside.document.createElement("script");
        script.onload = () => done(inside);
        script.onerror = failed;
        script.src = new URL(url, location.href);
        inside.document.body.append(script);
      });
      this.loaded.catch((event) => this.onerror?.(event));
    }

    postMessage(data) {
      const copy = structuredClone(data); // as between threads: neither side sees what the other changes
      this.loaded.then((inside) => inside.onmessage({ data: copy }), () => {});
    }

    terminate() {
      this.frame.remove();
    }
  };
}
