/* The answers of the fake libnvidia-ml.so.1: a text file, kept in memory, read again when stat() says it has changed.
 *
 * The file is named by FAKE_NVML_ANSWERS. A line is "PLACE KEY VALUE": PLACE is the index of a GPU, "*" for every one,
 * "GPU:INSTANCE" for a MIG instance, "GPU:*" or "*:*" for every one; the last line that fits wins. VALUE is a number
 * ("45u" is an unsigned int where a field says its type, "-3s" a signed one, "1.5" a double, else an unsigned long
 * long), a text, "!CODE" (fail with that nvmlReturn_t), or "hang" (never return). What is not in the file is not
 * supported. A handle from before a change of a GPU's "generation" (a reset) is that of a lost GPU for ever.
 *
 * Any thread may ask. A lock is held while the answers are looked up, and not while a call hangs.
 */
#include "fake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { EVERY = -1, WHOLE = -2, VALUE_SIZE = 256, SLOTS = 4096 };

typedef struct {
    uint64_t key;
    int gpu, instance, older; /* older: the line before it that hangs at the same slot, or -1 */
    char value[VALUE_SIZE];
} Answer;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Answer *answers;
static int count, room, newest[SLOTS];
static char loaded_path[4096];
static struct stat loaded;

/* FNV-1a of the name, or the numbers themselves where the name is numbered: 64 bits for some hundred keys. */
static uint64_t hash(const char *text) {
    uint64_t value = 1469598103934665603u;
    for (; *text; text++) value = (value ^ (unsigned char)*text) * 1099511628211u;
    return value >> 4;
}

static uint64_t numbered(int kind, unsigned int id, unsigned int scope) {
    return (uint64_t)kind << 60 | (uint64_t)(id & 0xfffffff) << 32 | scope;
}

static uint64_t key_of(const char *name) {
    int kind = strncmp(name, "field.", 6) == 0 ? FIELDS : strncmp(name, "gpm.", 4) == 0 ? GPM : 0;
    char *end;
    if (!kind) return hash(name);
    unsigned int id = (unsigned int)strtoul(strchr(name, '.') + 1, &end, 10);
    if (!*end) return numbered(kind, id, SCOPE_BARE);
    return numbered(kind, id, end[1] == '*' ? SCOPE_ANY : (unsigned int)strtoul(end + 1, NULL, 10));
}

static unsigned int slot_of(uint64_t key) { return (unsigned int)((key * 11400714819323198485u) >> 52); }

static void add(const char *where, const char *name, const char *value) {
    const char *colon = strchr(where, ':');
    if (count == room) {
        int larger = room ? 2 * room : 256;
        Answer *grown = realloc(answers, (size_t)larger * sizeof *answers);
        if (!grown) return;
        answers = grown;
        room = larger;
    }
    Answer *made = &answers[count];
    made->key = key_of(name);
    made->gpu = where[0] == '*' ? EVERY : atoi(where);
    made->instance = !colon ? WHOLE : colon[1] == '*' ? EVERY : atoi(colon + 1);
    snprintf(made->value, sizeof made->value, "%s", value);
    made->older = newest[slot_of(made->key)];
    newest[slot_of(made->key)] = count++;
}

static void load(const char *path, const struct stat *found) {
    FILE *file = fopen(path, "r");
    char line[512], where[32], name[64], value[VALUE_SIZE];
    if (!file) return;
    count = 0;
    memset(newest, 0xff, sizeof newest);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%31s %63s %255[^\n]", where, name, value) == 3) add(where, name, value);
    fclose(file);
    snprintf(loaded_path, sizeof loaded_path, "%s", path);
    loaded = *found;
}

void refresh(void) {
    const char *path = getenv("FAKE_NVML_ANSWERS");
    struct stat found;
    if (!path || stat(path, &found) != 0) return;
    pthread_mutex_lock(&lock);
    if (found.st_mtim.tv_nsec != loaded.st_mtim.tv_nsec || found.st_mtim.tv_sec != loaded.st_mtim.tv_sec ||
        found.st_ino != loaded.st_ino || found.st_size != loaded.st_size || strcmp(path, loaded_path) != 0)
        load(path, &found);
    pthread_mutex_unlock(&lock);
}

static const char *find(int place, uint64_t key) {
    int gpu = place < 0 ? NO_GPU : place & PLACE_GPU_MASK;
    int instance = place < 0 || place >> PLACE_BITS == 0 ? WHOLE : (place >> PLACE_BITS) - 1;
    if (!loaded_path[0]) return NULL;
    for (int at = newest[slot_of(key)]; at >= 0; at = answers[at].older) {
        const Answer *one = &answers[at];
        int fits = one->gpu == EVERY || (gpu >= 0 && one->gpu == gpu);
        int same = one->instance == instance || (one->instance == EVERY && instance != WHOLE);
        if (one->key == key && fits && same) return one->value;
    }
    return NULL;
}

/* A call hangs for as long as the answers say so. */
static Return answer(int place, const uint64_t *keys, int tries, Return missing, char *text, size_t size) {
    if (place == STALE_HANDLE) return GPU_IS_LOST;
again:;
    const char *found = NULL;
    pthread_mutex_lock(&lock);
    for (int index = 0; index < tries && !found; index++) found = find(place, keys[index]);
    Return result = !loaded_path[0] ? UNKNOWN : !found ? missing : found[0] == '!' ? atoi(found + 1) : SUCCESS;
    int hangs = found && strcmp(found, "hang") == 0;
    if (found && result == SUCCESS) snprintf(text, size, "%s", found);
    pthread_mutex_unlock(&lock);
    if (hangs) {
        usleep(10000);
        refresh();
        goto again;
    }
    return result;
}

Return say(int place, const char *key, char *text, size_t size) {
    uint64_t hashed = hash(key);
    return answer(place, &hashed, 1, NOT_SUPPORTED, text, size);
}

Return refusal(int place, const char *key) {
    char ignored[VALUE_SIZE];
    uint64_t hashed = hash(key);
    return answer(place, &hashed, 1, SUCCESS, ignored, sizeof ignored);
}

Return say_numbered(int place, int kind, unsigned int id, unsigned int scope, char *text, size_t size) {
    uint64_t keys[] = {numbered(kind, id, scope), numbered(kind, id, SCOPE_ANY), numbered(kind, id, SCOPE_BARE)};
    return answer(place, keys, scope == 0 ? 3 : 2, NOT_SUPPORTED, text, size);
}

Return number(int place, const char *key, unsigned long long *out) {
    char text[VALUE_SIZE];
    Return result = say(place, key, text, sizeof text);
    if (result == SUCCESS) *out = strtoull(text, NULL, 0);
    return result;
}

/* A handle is the place plus one and above it the generation of the GPU. */
void *handle_of(int place) {
    unsigned long long generation = 0;
    number(place & PLACE_GPU_MASK, "generation", &generation);
    return (void *)((uintptr_t)generation << 32 | (uintptr_t)(place + 1));
}

int gpu_of(void *device) {
    refresh();
    int place = (int)((uintptr_t)device & 0xffffffff) - 1;
    return device == NULL ? NO_GPU : device == handle_of(place) ? place : STALE_HANDLE;
}
