/* The module fooproxy._core: the compiled twins of the pump and of the counting classes; see fooproxy/core.py. */

#include "foo/counting.h"
#include "net/pump.h"

/* Grows with each change of the module's interface; core.py has the same number, and refuses any other. */
enum { INTERFACE = 5 };

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fooproxy._core",
    .m_doc = PyDoc_STR("The compiled twins of fooproxy.net.pump and fooproxy.foo's counting."),
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    PyObject *core = PyModule_Create(&module);
    if (core == NULL)
        return NULL;
    if (PyModule_AddIntConstant(core, "INTERFACE", INTERFACE) < 0 || add_counting(core) < 0
        || PyModule_AddType(core, &Pump_Type) < 0)
        Py_CLEAR(core);
    return core;
}
