/* NVML's event set. "0 xids 79,48" are the XIDs that GPU 0 has had so far; each is told once to each set. */
#include "fake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { GPUS = 64, XID_EVENT = 8, POLL_MICROSECONDS = 100000 };

typedef struct {
    void *handle[GPUS];
    int place[GPUS], told[GPUS];
    int gpus;
} Set;

typedef struct {
    void *device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
} Event;

Return nvmlEventSetCreate(Set **set) {
    refresh();
    Return result = refusal(NO_GPU, "event_set");
    if (result == SUCCESS) *set = calloc(1, sizeof **set);
    return result;
}

Return nvmlDeviceRegisterEvents(void *device, unsigned long long types, Set *set) {
    int gpu = gpu_of(device);
    Return result = gpu == STALE_HANDLE ? GPU_IS_LOST : refusal(gpu, "register_events");
    if (result != SUCCESS || !(types & XID_EVENT) || set->gpus == GPUS) return result;
    set->handle[set->gpus] = device;
    set->place[set->gpus++] = gpu;
    return SUCCESS;
}

/* The n-th of "79,48", 0 if there are not so many. */
static unsigned long long nth(const char *list, int n) {
    for (; n && list; n--) list = strchr(list, ',') ? strchr(list, ',') + 1 : NULL;
    return list ? strtoull(list, NULL, 10) : 0;
}

Return nvmlEventSetWait_v2(Set *set, Event *event, unsigned int milliseconds) {
    char list[256];
    for (long long waited = 0; waited <= 1000LL * milliseconds; waited += POLL_MICROSECONDS) {
        refresh();
        for (int at = 0; at < set->gpus; at++) {
            if (say(set->place[at], "xids", list, sizeof list) != SUCCESS) continue;
            unsigned long long code = nth(list, set->told[at]);
            if (!code) continue;
            set->told[at]++;
            *event = (Event){set->handle[at], XID_EVENT, code, 0xffffffff, 0xffffffff};
            return SUCCESS;
        }
        Return result = refusal(NO_GPU, "event_wait");
        if (result != SUCCESS) return result;
        usleep(POLL_MICROSECONDS);
    }
    return TIMEOUT;
}

Return nvmlEventSetFree(Set *set) {
    free(set);
    return SUCCESS;
}
