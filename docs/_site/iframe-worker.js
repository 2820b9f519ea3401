/* Search in a browser that opens the site from the disk: there, no browser starts a Worker. A frame in its place runs
   the same script. The theme looks for `IFrameWorker`, and awaits `importScripts`. */
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.queue = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<!doctype html><title>search</title><body></body>"
      this.frame.onload = () => this.start(new URL(url, document.baseURI).href)
      document.body.append(this.frame)
    }

    start(url) {
      const inside = this.frame.contentWindow
      const load = src => new Promise((resolve, reject) => {
        const script = inside.document.createElement("script")
        Object.assign(script, { src, async: false, onload: resolve, onerror: reject })
        inside.document.body.append(script)
      })
      inside.importScripts = (...urls) => Promise.all(urls.map(load))
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      load(url).then(() => {
        this.send = data => inside.dispatchEvent(new inside.MessageEvent("message", { data }))
        this.queue.forEach(this.send)
      })
    }

    postMessage(data) {
      this.send ? this.send(data) : this.queue.push(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
