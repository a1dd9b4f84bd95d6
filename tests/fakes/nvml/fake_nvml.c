/* A small libnvidia-ml.so.1 for tests: the real pynvml loads it and cannot tell.
 *
 * What it says is read from the file named by FAKE_NVML_ANSWERS at every call, so that a test can change it while a
 * process has it loaded. A line is "GPU KEY VALUE": GPU is an index or "*", the last line that fits wins. VALUE is a
 * number ("45u" is an unsigned int where a field says its type, "1.5" a double, else an unsigned long long), a text,
 * "!CODE" (fail with that nvmlReturn_t), or "hang" (never return). What is not in the file is not supported. A handle
 * from before a change of a GPU's "generation" (a reset) is that of a lost GPU for ever.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int Return;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, GPU_IS_LOST = 15, UNKNOWN = 999 };
enum { NO_GPU = -1, STALE_HANDLE = -2 };
enum { TYPE_DOUBLE = 0, TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };

static Return say(int gpu, const char *key, char *text, size_t size) {
    const char *path = getenv("FAKE_NVML_ANSWERS");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512], where[32], name[64], value[256], found[256] = "";
    if (!file) return UNKNOWN;
    if (gpu == STALE_HANDLE) {
        fclose(file);
        return GPU_IS_LOST;
    }
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%31s %63s %255[^\n]", where, name, value) != 3 || strcmp(name, key) != 0) continue;
        if (strcmp(where, "*") == 0 || (gpu >= 0 && atoi(where) == gpu)) strcpy(found, value);
    }
    fclose(file);
    if (!found[0]) return NOT_SUPPORTED;
    if (found[0] == '!') return atoi(found + 1);
    if (strcmp(found, "hang") == 0)
        for (;;) pause();
    snprintf(text, size, "%s", found);
    return SUCCESS;
}

static Return number(int gpu, const char *key, unsigned long long *out) {
    char text[256];
    Return result = say(gpu, key, text, sizeof text);
    if (result == SUCCESS) *out = strtoull(text, NULL, 0);
    return result;
}

static uintptr_t generation(int gpu) {
    unsigned long long found = 0;
    number(gpu, "generation", &found);
    return (uintptr_t)found;
}

static void *handle_of(int gpu) { return (void *)((generation(gpu) << 16) | (uintptr_t)(gpu + 1)); }

static int gpu_of(void *device) {
    int gpu = (int)((uintptr_t)device & 0xffff) - 1;
    return device == NULL ? NO_GPU : device == handle_of(gpu) ? gpu : STALE_HANDLE;
}

static Return small(void *device, const char *key, unsigned int *out) {
    unsigned long long wide = 0;
    Return result = number(gpu_of(device), key, &wide);
    if (result == SUCCESS) *out = (unsigned int)wide;
    return result;
}

static Return text_of(void *device, const char *key, char *out, unsigned int size) {
    return say(gpu_of(device), key, out, size);
}

Return nvmlInitWithFlags(unsigned int flags) {
    unsigned long long ignored;
    Return result = number(NO_GPU, "init", &ignored);
    (void)flags;
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

Return nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(Return result) {
    (void)result;
    return "an error of the fake library";
}

Return nvmlSystemGetDriverVersion(char *out, unsigned int size) { return say(NO_GPU, "driver_version", out, size); }

Return nvmlDeviceGetCount_v2(unsigned int *count) { return small(NULL, "count", count); }

Return nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    unsigned long long ignored;
    Return result = number((int)index, "handle", &ignored);
    *device = handle_of((int)index);
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

Return nvmlDeviceGetUUID(void *device, char *out, unsigned int size) { return text_of(device, "uuid", out, size); }
Return nvmlDeviceGetName(void *device, char *out, unsigned int size) { return text_of(device, "name", out, size); }

Return nvmlDeviceGetUtilizationRates(void *device, unsigned int rates[2]) {
    Return result = small(device, "utilization_gpu", &rates[0]);
    return result == SUCCESS ? small(device, "utilization_memory", &rates[1]) : result;
}

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} Memory;

Return nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    int gpu = gpu_of(device);
    Return result = number(gpu, "memory_used", &memory->used);
    if (memory->version != 0x02000028) return INVALID_ARGUMENT;
    return result == SUCCESS ? number(gpu, "memory_total", &memory->total) : result;
}

typedef struct {
    unsigned int version, sensor;
    int celsius;
} Temperature;

Return nvmlDeviceGetTemperatureV(void *device, Temperature *temperature) {
    return small(device, "temperature", (unsigned int *)&temperature->celsius);
}

Return nvmlDeviceGetPowerUsage(void *device, unsigned int *out) { return small(device, "power_usage", out); }
Return nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned int *out) { return small(device, "power_limit", out); }

Return nvmlDeviceGetClockInfo(void *device, int type, unsigned int *out) {
    return small(device, type == 1 ? "clock_sm" : type == 2 ? "clock_memory" : "clock_other", out);
}

Return nvmlDeviceGetPerformanceState(void *device, int *out) {
    return small(device, "performance_state", (unsigned int *)out);
}

/* Only the older name is here: pynvml says "function not found" for the newer one, as with a driver before 535. */
Return nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {
    return number(gpu_of(device), "clocks_event_reasons", out);
}

Return nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned int *out) { return small(device, "pcie_generation", out); }
Return nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned int *out) { return small(device, "pcie_width", out); }

typedef struct {
    unsigned int id, scope;
    long long timestamp, latency;
    int type;
    Return result;
    union {
        double d;
        unsigned int u;
        unsigned long long ull;
    } value;
} FieldValue;

Return nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values) {
    int gpu = gpu_of(device);
    unsigned long long ignored;
    Return all = number(gpu, "fields", &ignored);
    if (all != SUCCESS && all != NOT_SUPPORTED) return all;
    for (int index = 0; index < count; index++) {
        char key[32], text[256];
        snprintf(key, sizeof key, "field.%u", values[index].id);
        values[index].result = say(gpu, key, text, sizeof text);
        if (values[index].result != SUCCESS) continue;
        if (strchr(text, 'u')) {
            values[index].type = TYPE_UNSIGNED_INT;
            values[index].value.u = (unsigned int)strtoul(text, NULL, 0);
        } else if (strchr(text, '.') || strstr(text, "nan")) {
            values[index].type = TYPE_DOUBLE;
            values[index].value.d = strtod(text, NULL);
        } else {
            values[index].type = TYPE_UNSIGNED_LONG_LONG;
            values[index].value.ull = strtoull(text, NULL, 0);
        }
    }
    return SUCCESS;
}
