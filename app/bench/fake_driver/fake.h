/* What the parts of the fake libnvidia-ml.so.1 share: places, answers, and NVML's codes.
 *
 * A place is a GPU ("3"), or a MIG instance of one ("3:0"), as an int: the index of the GPU, and above PLACE_BITS the
 * index of the instance plus one.
 */
#ifndef NANTUCKET_FAKE_NVML_H
#define NANTUCKET_FAKE_NVML_H

#include <stddef.h>
#include <stdint.h>

typedef int Return;
enum {
    SUCCESS = 0,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    MEMORY = 20,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};
enum { NO_GPU = -1, STALE_HANDLE = -2, PLACE_BITS = 8, PLACE_GPU_MASK = 0xff };
enum { TYPE_DOUBLE = 0, TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3, TYPE_SIGNED_INT = 5 };

/* Read the answers again if their file has changed. gpu_of does it too: call this before you answer without a handle,
 * and in a loop that waits for an answer to change. */
void refresh(void);

/* The place behind a handle, NO_GPU for NULL, STALE_HANDLE for one from before a reset. Refreshes. */
int gpu_of(void *device);
void *handle_of(int place);

/* What the answers say of KEY at PLACE: SUCCESS and the text, a code, or never return. NOT_SUPPORTED if nothing. */
Return say(int place, const char *key, char *text, size_t size);
Return number(int place, const char *key, unsigned long long *out);

/* The code with which a whole call is to fail, SUCCESS if the answers say none. */
Return refusal(int place, const char *key);

/* As say, of one numbered thing: "field.82", "field.165.3", "gpm.5". A bare name answers scope 0, ".*" every scope. */
enum { FIELDS = 1, GPM = 2 };
#define SCOPE_ANY 0xfffffffeu
#define SCOPE_BARE 0xfffffffdu
Return say_numbered(int place, int kind, unsigned int id, unsigned int scope, char *text, size_t size);

#endif
