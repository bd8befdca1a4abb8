/* NVML: the library, the driver, and how to find a GPU. */
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "identity.h"

/* Copies text into the caller's buffer. */
nvmlReturn_t kvws_copy_text(char *to, unsigned int length, const char *from)
{
    if (!to)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(from) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(to, from);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    return kvws_api_open();
}

NVML_API nvmlReturn_t nvmlInit_v2(void)
{
    return kvws_api_open();
}

NVML_API nvmlReturn_t nvmlInit(void)
{
    return kvws_api_open();
}

NVML_API nvmlReturn_t nvmlShutdown(void)
{
    kvws_state *state = kvws_api_state();
    nvmlReturn_t rc = state ? kvws_api_system_fault(state, __func__) : NVML_SUCCESS;
    return rc != NVML_SUCCESS ? rc : kvws_api_close();
}

NVML_API const char *nvmlErrorString(nvmlReturn_t result)
{
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power",
        "Driver Not Loaded", "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found",
        "Function Not Found", "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "The operating system has blocked the request", "Driver/library version mismatch",
        "In use by another client", "Insufficient Memory", "No data", "vGPU ECC not supported",
        "Insufficient resources", "Frequency not supported", "Argument version mismatch", "Deprecated",
        "Not ready", "GPU not found", "Invalid state", "Reset type not supported",
    };
    unsigned int index = (unsigned int)result;
    return index < sizeof texts / sizeof texts[0] ? texts[index] : "Unknown Error";
}

NVML_API nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    nvmlReturn_t rc = kvws_api_system_fault(state, "nvmlSystemGetDriverVersion");
    return rc != NVML_SUCCESS ? rc : kvws_copy_text(version, length, state->gpus[0].spec.driver_version);
}

NVML_API nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    char text[96];
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    snprintf(text, sizeof text, "12.%s", state->gpus[0].spec.driver_version);
    return kvws_copy_text(version, length, text);
}

NVML_API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = state->gpus[0].spec.cuda_version;
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

NVML_API nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    char path[64], text[64] = "";
    if (!kvws_api_state())
        return NVML_ERROR_UNINITIALIZED;
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return NVML_ERROR_NOT_FOUND;
    if (!fgets(text, sizeof text, file))
        text[0] = '\0';
    fclose(file);
    text[strcspn(text, "\n")] = '\0';
    return kvws_copy_text(name, length, text);
}

NVML_API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = (unsigned int)state->n_gpus;
    return kvws_api_system_fault(state, "nvmlDeviceGetCount");
}

NVML_API nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
    return nvmlDeviceGetCount_v2(count);
}

/* Gives the handle unless a fault on this GPU stands in the way, as on a lost one. */
static nvmlReturn_t give_handle(int index, const char *name, nvmlDevice_t *device)
{
    kvws_call call;
    nvmlReturn_t rc = kvws_api_read(kvws_api_handle(index), name, &call);
    if (rc != NVML_SUCCESS)
        return rc;
    kvws_api_end(&call);
    *device = kvws_api_handle(index);
    return NVML_SUCCESS;
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    if (!device || index >= (unsigned int)state->n_gpus)
        return NVML_ERROR_INVALID_ARGUMENT;
    return give_handle((int)index, __func__, device);
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    if (!device || !uuid)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < state->n_gpus; i++)
        if (strcmp(uuid, state->gpus[i].spec.uuid) == 0)
            return give_handle(i, __func__, device);
    return NVML_ERROR_NOT_FOUND;
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    unsigned int domain, bus, slot;
    kvws_state *state = kvws_api_state();
    if (!state)
        return NVML_ERROR_UNINITIALIZED;
    if (!device || !bus_id || sscanf(bus_id, "%x:%x:%x.0", &domain, &bus, &slot) != 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < state->n_gpus; i++)
        if (domain == 0 && slot == 0 && bus == KVWS_FIRST_PCI_BUS + (unsigned int)i)
            return give_handle(i, __func__, device);
    return NVML_ERROR_NOT_FOUND;
}

NVML_API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}
