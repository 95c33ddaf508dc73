/** Resolves after so many milliseconds. Rejects with the signal's reason if it is aborted before. */
export function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return unlessAborted(signal, (resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    return () => clearTimeout(timer);
  });
}

/** What the promise gives. Rejects with the signal's reason if it is aborted before. */
export function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return unlessAborted<T>(signal, (resolve, reject) => {
    promise.then(resolve, reject);
    return () => undefined;
  });
}

function unlessAborted<T>(
  signal: AbortSignal,
  begin: (resolve: (value: T) => void, reject: (reason: unknown) => void) => () => void,
): Promise<T> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const settle = <V>(then: (value: V) => void) => (value: V) => {
      signal.removeEventListener("abort", onAbort);
      then(value);
    };
    const end = begin(settle<T>(resolve), settle<unknown>(reject));
    const onAbort = () => {
      end();
      settle<unknown>(reject)(signal.reason);
    };
    signal.addEventListener("abort", onAbort);
  });
}
