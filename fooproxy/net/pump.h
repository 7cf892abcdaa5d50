/* The compiled pump, for the module that has it. */

#ifndef FOOPROXY_PUMP_H
#define FOOPROXY_PUMP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

extern PyTypeObject Pump_Type;

#endif
